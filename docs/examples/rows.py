"""Rows from a compressed file into a database: `python rows.py TRIPS.csv.gz TRIPS.db`, on all cores, in flat memory.

A row of the file is `id,latitude,longitude,latitude,longitude`, one of the database an id and a distance in km.
"""

import csv
import gzip
import os
import sqlite3
import sys
from contextlib import closing
from itertools import islice
from math import asin, cos, radians, sin, sqrt

import trio

import trio_fanout as fanout

BATCH = 2_000  # rows: enough to be worth a trip to another process


def distance(*degrees):
    """The way between two points on the globe (the haversine formula)."""
    lat1, lon1, lat2, lon2 = map(radians, degrees)
    return 12742 * asin(sqrt(sin((lat2 - lat1) / 2) ** 2 + cos(lat1) * cos(lat2) * sin((lon2 - lon1) / 2) ** 2))


def convert(lines):
    """What a worker process does with a batch."""
    return [(int(number), distance(*map(float, points))) for number, *points in csv.reader(lines)]


def batches(lines):
    while batch := list(islice(lines, BATCH)):
        yield batch


async def main(source, target):
    with gzip.open(source, "rt") as lines, closing(sqlite3.connect(target)) as db:
        db.execute("CREATE TABLE IF NOT EXISTS trips (id INTEGER PRIMARY KEY, km REAL)")
        work = fanout.in_process(convert)
        async with fanout.stream(work, batches(lines), limit=os.cpu_count(), buffer=2) as results:
            async for _, _, rows in results:
                with db:  # a transaction for each batch
                    db.executemany("REPLACE INTO trips VALUES (?, ?)", rows)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
