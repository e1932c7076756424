"""A stranger's reader of a topic of change events: it knows Kafka, the registry's API and Avro, and nothing of dflux.

usage: read_topic.py BROKERS REGISTRY TOPIC; one line of JSON for each record.
"""
import io
import json
import struct
import sys
import urllib.request

import fastavro
from confluent_kafka import Consumer, TopicPartition

brokers, registry, topic = sys.argv[1:]
schemas = {}


def decode(record):
    magic, schema_id = struct.unpack(">bI", record[:5])
    assert magic == 0, "no Confluent wire format"
    if schema_id not in schemas:
        with urllib.request.urlopen(f"{registry}/schemas/ids/{schema_id}") as answer:
            schemas[schema_id] = fastavro.parse_schema(json.loads(json.load(answer)["schema"]))
    body = io.BytesIO(record[5:])
    value = fastavro.schemaless_reader(body, schemas[schema_id], None)
    assert not body.read(), "bytes left over"
    return value


consumer = Consumer({"bootstrap.servers": brokers, "group.id": "unused", "enable.auto.commit": False})
partitions = consumer.list_topics(topic, 10).topics[topic].partitions
for partition in partitions:
    low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), 10)
    consumer.assign([TopicPartition(topic, partition, low)])
    position = low
    while position < high:
        message = consumer.poll(10)
        assert message is not None, f"no record at offset {position}"
        assert message.error() is None, message.error()
        position = message.offset() + 1
        key = decode(message.key()) if message.key() else None
        print(json.dumps({"key": key, "value": decode(message.value())}, default=str))
consumer.close()
