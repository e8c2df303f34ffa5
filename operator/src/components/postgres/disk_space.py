"""Tells, as an annotation of its own pod, when the volume has little room left: no one else can see it.

Usage: disk_space.py FOLDER ANNOTATION
"""
import json
import os
import shutil
import ssl
import sys
import time
import urllib.request

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# Of the volume: told below the first, taken back above the second.
LITTLE, ENOUGH = 0.10, 0.12
MIB = 1 << 20


def annotate(name, text):
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    with open(f"{ACCOUNT}/namespace") as namespace, open(f"{ACCOUNT}/token") as token:
        request = urllib.request.Request(
            f"https://{host}:{port}/api/v1/namespaces/{namespace.read()}/pods/{os.environ['PATRONI_NAME']}",
            json.dumps({"metadata": {"annotations": {name: text}}}).encode(),
            {"Authorization": f"Bearer {token.read()}", "Content-Type": "application/merge-patch+json"},
            method="PATCH",
        )
    context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    # Authorities of clusters need not have all that RFC 5280 asks of them; Kubernetes's clients do not ask.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    urllib.request.urlopen(request, timeout=5, context=context).close()


def main(folder, name):
    little, told = False, "nothing yet"
    while True:
        usage = shutil.disk_usage(folder)
        little = usage.free / usage.total < (ENOUGH if little else LITTLE)
        left = f"{usage.free // MIB} of {usage.total // MIB} MiB are left" if little else None
        if left != told:
            try:
                annotate(name, left)
                told = left
            except OSError as error:
                print(f"disk_space.py: it is told later: {error}", file=sys.stderr, flush=True)
        time.sleep(10)


main(*sys.argv[1:])
