# Kafka of one node, its jars by their Maven coordinates (kafka.pom.xml).
ARG BASE
FROM ${BASE}
RUN mkdir -p /usr/share/man/man1 && apt-get update && apt-get install -y --no-install-recommends openjdk-21-jre-headless \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/share/doc/*
COPY kafka/ /opt/kafka/
COPY kafka.sh kafka.properties /opt/
USER 10001:10001
CMD ["sh", "/opt/kafka.sh"]
