"""What programs do with etcd, by Python's etcd3; the leader is killed while a key is watched.

usage: program.py PORT PROCESS-OF-THE-LEADER
"""

import os
import signal
import sys
import threading
import time

import etcd3

WRITES = 50
KILLED_BEFORE = 20
DEADLINE_S = 20


def keys_and_transactions(client):
    client.put('/py/a', '1')
    value, about = client.get('/py/a')
    assert (value, about.key) == (b'1', b'/py/a')
    assert [about.key for _, about in client.get_prefix('/py/')] == [b'/py/a']
    of = client.transactions
    succeeded, answers = client.transaction(
        compare=[of.value('/py/a') == '1', of.version('/py/a') > 0],
        success=[of.put('/py/a', '2'), of.get('/py/a')],
        failure=[of.put('/py/a', 'no')],
    )
    assert succeeded and answers[1][0][0] == b'2', answers
    assert client.replace('/py/a', '2', '3') and not client.replace('/py/a', '2', '4')
    assert client.put_if_not_exists('/py/b', 'x') and not client.put_if_not_exists('/py/b', 'y')


def leases(client):
    lease = client.lease(30)
    client.put('/py/l', 'v', lease=lease)
    assert lease.remaining_ttl <= 30 and lease.keys == [b'/py/l']
    lease.refresh()
    lease.revoke()
    assert client.get('/py/l')[0] is None


def locks(client, other):
    with client.lock('one', ttl=20) as lock:
        assert lock.is_acquired()
        second = other.lock('one', ttl=20)
        assert not second.acquire(timeout=1)
    assert second.acquire(timeout=DEADLINE_S)
    second.release()


def watch_while_the_leader_dies(client, leader):
    seen, all_seen = [], threading.Event()

    def changed(answer):
        assert not isinstance(answer, Exception), answer
        for event in answer.events:
            seen.append(int(event.value))
            if seen[-1] == WRITES - 1:
                all_seen.set()

    client.add_watch_callback('/py/w', changed)
    for number in range(WRITES):
        if number == KILLED_BEFORE:
            os.kill(leader, signal.SIGKILL)
        until = time.monotonic() + DEADLINE_S
        while True:
            try:
                client.put('/py/w', str(number))
                break
            except etcd3.exceptions.Etcd3Exception:
                # Written again, where it may have been: then it is seen twice.
                assert time.monotonic() < until
    assert all_seen.wait(DEADLINE_S), seen
    assert seen == sorted(seen) and set(seen) == set(range(WRITES)), seen


def main():
    port, leader = int(sys.argv[1]), int(sys.argv[2])
    connect = lambda: etcd3.client(host='127.0.0.1', port=port, timeout=DEADLINE_S)
    client, other = connect(), connect()
    assert client.status().version and len(list(client.members)) == 3
    keys_and_transactions(client)
    leases(client)
    locks(client, other)
    watch_while_the_leader_dies(client, leader)
    print('python: everything is right')


main()
