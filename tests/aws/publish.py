"""Publishes over MQTT with a device's certificate, by paho-mqtt.

    publish.py PLACE < MESSAGES

PLACE is an object of JSON: port, roots, certificate, key, client and topic.
MESSAGES are in Base64, one a line. Says of each whether the broker has taken it, a
line each; of the first that it has not, why, and then nothing more.
"""

import base64
import json
import queue
import ssl
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

# seconds; a broker that is there needs none of them
PATIENCE = 60


def main():
    place = json.loads(sys.argv[1])
    events = queue.Queue()
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=place["client"],
        reconnect_on_failure=False,
    )
    client.on_connect = lambda _client, _data, _flags, reason, _properties: events.put(
        "connected" if reason == 0 else f"not connected: {reason}"
    )
    client.on_disconnect = lambda _client, _data, _flags, reason, _properties: events.put(
        f"disconnected: {reason}"
    )
    client.on_publish = lambda _client, _data, mid, _reason, _properties: events.put(mid)
    client.tls_set(
        ca_certs=place["roots"], certfile=place["certificate"], keyfile=place["key"]
    )
    try:
        client.connect("127.0.0.1", place["port"])
    except ssl.SSLError as error:
        print(f"no TLS: {error}")
        return
    client.loop_start()
    connected = events.get(timeout=PATIENCE)
    if connected != "connected":
        print(connected)
        return
    for line in sys.stdin:
        sent = client.publish(place["topic"], base64.b64decode(line), qos=1)
        event = events.get(timeout=PATIENCE)
        if event != sent.mid:
            print(event)
            return
        print("taken")
    client.disconnect()


if __name__ == "__main__":
    main()
