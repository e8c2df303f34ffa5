set -eu
cp /opt/kafka.properties /data/server.properties
echo "advertised.listeners=PLAINTEXT://$ADVERTISED:9092" >>/data/server.properties
[ -e /data/log/meta.properties ] ||
    java -Xmx128m -cp '/opt/kafka/*' kafka.tools.StorageTool format --standalone -t e2e-e2e-e2e-e2e-e2e-Q -c /data/server.properties
exec java -Xmx512m -cp '/opt/kafka/*' kafka.Kafka /data/server.properties
