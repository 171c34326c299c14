"""Runs what it is told: each connection is a script for the shell, answered with what it printed and its status."""
import socket
import subprocess
import threading


def serve(connection):
    with connection:
        script = b". /share/functions.sh\n"
        while piece := connection.recv(65536):
            script += piece
        done = subprocess.run(
            ["/bin/bash", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        connection.sendall(done.stdout + b"\nstatus %d\n" % done.returncode)


listener = socket.create_server(("0.0.0.0", 10800))
print("agent ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
