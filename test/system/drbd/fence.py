"""DRBD's handlers: fence.py fence|unfence. Asks the one outside who decides. The exit statuses are those of DRBD's
fence-peer handlers: 5 the peer cannot be reached and this node may not go on, 7 the peer was switched off."""
import sys
import urllib.request

address, me = open("/share/fence").read().split()
with urllib.request.urlopen(f"http://{address}/{sys.argv[1]}/{me}", timeout=30) as answer:
    sys.exit(7 if answer.read() == b"yes" else 5)
