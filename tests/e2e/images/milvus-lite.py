#!/usr/bin/python3
"""milvus-lite on Milvus's ports: 19530 for clients, /healthz on 9091."""

import http.server
import signal
import socket
import subprocess
import sys
import threading

if sys.argv[1:] != ["run", "standalone"]:
    sys.exit(f"only `run standalone` is here, not {sys.argv[1:]}")
server = subprocess.Popen([
    sys.executable, "-m", "milvus_lite", "server", "--host", "0.0.0.0", "--port", "19530",
    "--data-dir", "/var/lib/milvus/lite",
])


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            socket.create_connection(("127.0.0.1", 19530), timeout=1).close()
            status, body = 200, b"OK"
        except OSError as error:
            status, body = 500, str(error).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


health = http.server.ThreadingHTTPServer(("", 9091), Health)
threading.Thread(target=health.serve_forever, daemon=True).start()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: server.send_signal(signal.SIGINT))
sys.exit(server.wait())
