"""Start the real ``vllm serve``, use it as its clients do, ask its processes, and print what they say."""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from processes.vllm import checkpoint
from processes.vllm.observed import add_told

READY = "Application startup complete"


def serve(folder, port):
    arguments = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--served-model-name": "tiny",
        "--load-format": "dummy",
        "--dtype": "float32",
        "--max-model-len": "64",
        "--max-num-seqs": "1",
        "--max-num-batched-tokens": "64",
        "--distributed-executor-backend": "processes.vllm.executor.Executor",
        "--worker-extension-cls": "processes.vllm.observed.Extension",
    }
    command = [sys.executable, str(Path(__file__).with_name("command.py")), "serve", str(folder), "--enforce-eager"]
    return subprocess.Popen(
        [*command, *(part for pair in arguments.items() for part in pair)],
        env=os.environ | {"VLLM_SERVER_DEV_MODE": "1"},
        stderr=subprocess.PIPE,
        stdout=sys.stderr,
        text=True,
    )


def ask(port, method):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/collective_rpc", json.dumps({"method": method}), {"Content-Type": "application/json"})
    return json.load(connection.getresponse())["results"]


def complete(port):
    from openai import OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60, max_retries=0)
    return client.completions.create(model="tiny", prompt="t3 t5 t9", max_tokens=4, temperature=0).choices[0].text


def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = serve(checkpoint.make(Path(folder)), port)
        for line in server.stderr:
            sys.stderr.write(line)
            if READY in line:
                break
        else:
            sys.exit(f"the server ended with {server.wait()}")
        text = complete(port)
        parts = {
            "front end": [{"pid": server.pid}],
            "worker": ask(port, "observe"),
            "core": ask(port, "observe_core"),
        }
        parts = add_told(parts)
        server.terminate()
        sys.stderr.write(server.communicate()[1])
    print(json.dumps({"text": text, "ended with": server.returncode, **parts}))


if __name__ == "__main__":
    main()
