#!/usr/bin/env python3
"""A client of the gateway made from the tables of SPEC B1 alone, with stock grpcio.

usage: gateway_client.py HOST:PORT

The interface below is typed in from the specification, compiled here, and every rule of the
specification's part B that a client can see is checked against an empty store. Exit status 0 when
every answer is right; otherwise the first wrong one is an AssertionError.
"""

import importlib
import os
import sys
import tempfile
import threading

import grpc
from grpc_tools import protoc

INTERFACE = """
syntax = "proto3";
package project;
message KeyRequest { string key = 1; optional int64 ver = 2; }
message KeyRange { KeyRequest fr = 1; KeyRequest to = 2; }
message KeyValueRequest { string key = 1; string val = 2; }
message KeyValueVersionReply { string key = 1; string val = 2; int64 ver = 3; }
message PutReply { string key = 1; string old_val = 2; int64 old_ver = 3; int64 ver = 4; }
service KeyValueStore {
  rpc Get(KeyRequest) returns (KeyValueVersionReply);
  rpc Del(KeyRequest) returns (KeyValueVersionReply);
  rpc Trim(KeyRequest) returns (KeyValueVersionReply);
  rpc GetRange(KeyRange) returns (stream KeyValueVersionReply);
  rpc DelRange(KeyRange) returns (stream KeyValueVersionReply);
  rpc GetAll(stream KeyRequest) returns (stream KeyValueVersionReply);
  rpc DelAll(stream KeyRequest) returns (stream KeyValueVersionReply);
  rpc Put(KeyValueRequest) returns (PutReply);
  rpc PutAll(stream KeyValueRequest) returns (stream PutReply);
}
"""

PATIENCE_S = 60


def compile_interface():
    """The modules that grpc_tools makes of the interface."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "kvs.proto"), "w", encoding="utf-8") as file:
            file.write(INTERFACE)
        arguments = ["protoc", f"-I{folder}", f"--python_out={folder}",
                     f"--grpc_python_out={folder}", "kvs.proto"]
        assert protoc.main(arguments) == 0, "the interface does not compile"
        sys.path.insert(0, folder)
        return importlib.import_module("kvs_pb2"), importlib.import_module("kvs_pb2_grpc")


pb, rpc = compile_interface()


def key(name, ver=None):
    return pb.KeyRequest(key=name) if ver is None else pb.KeyRequest(key=name, ver=ver)


def pair(name, val):
    return pb.KeyValueRequest(key=name, val=val)


def between(fr, to):
    return pb.KeyRange(fr=fr, to=to)


def row(reply):
    return (reply.key, reply.val, reply.ver)


def rows(replies):
    return [row(reply) for reply in replies]


def put_row(reply):
    return (reply.key, reply.old_val, reply.old_ver, reply.ver)


def equal(got, wanted):
    assert got == wanted, f"{got!r} is not {wanted!r}"


def fails(call, *codes):
    """Makes a call that must fail with one of the codes; its explanation."""
    try:
        answer = call()
        if not hasattr(answer, "DESCRIPTOR"):
            answer = list(answer)
    except grpc.RpcError as error:
        assert error.code() in codes, f"{error.code()} ({error.details()}) is none of {codes}"
        return error.details()
    raise AssertionError(f"{answer!r} where {codes} was due")


class Store:
    """The stub, with a deadline on every call."""

    def __init__(self, channel):
        stub = rpc.KeyValueStoreStub(channel)
        for name in ("Get", "Del", "Trim", "GetRange", "DelRange", "GetAll", "DelAll", "Put",
                     "PutAll"):
            setattr(self, name, self.patient(getattr(stub, name)))

    @staticmethod
    def patient(call):
        return lambda request, timeout=PATIENCE_S: call(request, timeout=timeout)


def one_key(store):
    first = store.Put(pair("k", "one"))
    equal(put_row(first), ("k", "", 0, first.ver))
    second = store.Put(pair("k", "two"))
    equal(put_row(second), ("k", "one", first.ver, second.ver))
    assert second.ver > first.ver > 0
    equal(row(store.Get(key("k"))), ("k", "two", second.ver))
    equal(row(store.Get(key("k", 0))), ("k", "two", second.ver))
    equal(row(store.Get(key("k", second.ver - 1))), ("k", "one", first.ver))
    equal(row(store.Get(key("k", first.ver - 1))), ("k", "", first.ver - 1))
    equal(row(store.Get(key("none"))), ("none", "", 0))
    equal(row(store.Get(key("none", 7))), ("none", "", 7))
    equal(row(store.Trim(key("k", 7))), ("k", "two", second.ver))
    equal(row(store.Get(key("k", first.ver))), ("k", "", first.ver))
    equal(row(store.Del(key("k", 7))), ("k", "two", second.ver))
    equal(row(store.Del(key("k", 7))), ("k", "", 0))
    equal(row(store.Get(key("k"))), ("k", "", 0))


def many_keys(store):
    written = list(store.PutAll(iter([pair("c", "3"), pair("a", "1"), pair("b", "")])))
    ver = written[0].ver
    equal([put_row(reply) for reply in written],
          [("c", "", 0, ver), ("a", "", 0, ver), ("b", "", 0, ver)])
    everything = [("a", "1", ver), ("b", "", ver), ("c", "3", ver)]
    equal(rows(store.GetRange(between(key("a"), key("c")))), everything)
    equal(rows(store.GetRange(between(key("c"), key("a")))), [])
    later = store.Put(pair("b", "2"))
    equal(rows(store.GetRange(between(key("a", ver), key("c", 1)))), everything)
    equal(rows(store.GetAll(iter([key("b"), key("none"), key("a")]))),
          [("b", "2", later.ver), ("none", "", 0), ("a", "1", ver)])
    equal(rows(store.GetAll(iter([key("b", 1), key("none"), key("a", ver)]))),
          [("b", "", ver), ("none", "", ver), ("a", "1", ver)])
    equal(rows(store.DelRange(between(key("a"), key("b")))),
          [("a", "1", ver), ("b", "2", later.ver)])
    equal(rows(store.DelAll(iter([key("c"), key("a")]))), [("c", "3", ver), ("a", "", 0)])
    equal(rows(store.GetRange(between(key("a"), key("z")))), [])
    equal(rows(store.GetAll(iter([]))), [])


def what_is_refused(store, channel):
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    for call in (lambda: store.Get(key("")), lambda: store.Del(key("")),
                 lambda: store.Trim(key("")), lambda: store.Put(pair("", "v")),
                 lambda: store.GetRange(pb.KeyRange()),
                 lambda: store.DelRange(between(key("a"), key(""))),
                 lambda: store.GetAll(iter([key("a"), key("")])),
                 lambda: store.DelAll(iter([key("")])),
                 lambda: store.PutAll(iter([pair("a", "v"), pair("", "v")]))):
        assert "empty" in fails(call, invalid)
    equal(row(store.Get(key("a"))), ("a", "", 0))
    fails(lambda: store.Put(pair("k", "v" * (4 * 1024 * 1024))), invalid)

    def raw(method, message):
        call = channel.unary_stream(f"/project.KeyValueStore/{method}",
                                    request_serializer=bytes, response_deserializer=bytes)
        return call(message, timeout=PATIENCE_S)

    # A string that is not UTF-8, a length past the end, a field of no type, random bytes.
    for garbage in (b"\x0a\x01\xff", b"\x0a\x7f", b"\x0f", b"\xff" + os.urandom(64)):
        for method in ("Get", "Put", "GetRange", "GetAll"):
            fails(lambda: raw(method, garbage), grpc.StatusCode.INTERNAL, invalid)
    fails(lambda: raw("Find", b""), grpc.StatusCode.UNIMPLEMENTED)
    equal(row(store.Get(key("a"))), ("a", "", 0))


def long_ones(store):
    big = "\u00e9" * (512 * 1024)
    ver = store.Put(pair("big", big)).ver
    equal(row(store.Get(key("big"))), ("big", big, ver))
    equal(store.Del(key("big")).val, big)

    names = [f"{number:06}" for number in range(100_000)]
    replies = list(store.PutAll(pair(name, name) for name in names))
    ver = replies[0].ver
    wanted = [(name, name, ver) for name in names]
    whole = between(key(names[0]), key(names[-1]))
    equal(rows(store.GetRange(whole)), wanted)

    cancelled = store.GetRange(whole)
    next(cancelled)
    cancelled.cancel()
    try:
        for _ in cancelled:
            pass
        raise AssertionError("a cancelled stream went on to its end")
    except grpc.RpcError as error:
        equal(error.code(), grpc.StatusCode.CANCELLED)
    equal(rows(store.DelRange(whole)), wanted)

    def never():
        yield key("a")
        threading.Event().wait(PATIENCE_S)

    fails(lambda: store.DelAll(never(), timeout=0.2), grpc.StatusCode.DEADLINE_EXCEEDED)


def two_hundred_puts(store, channel):
    stub = rpc.KeyValueStoreStub(channel)
    calls = [stub.Put.future(pair("hot", str(number)), timeout=PATIENCE_S)
             for number in range(200)]
    replies = sorted((call.result() for call in calls), key=lambda reply: reply.ver)
    equal(len({reply.ver for reply in replies}), 200)
    for before, after in zip(replies, replies[1:]):
        equal(after.old_ver, before.ver)
    equal(store.Get(key("hot")).ver, replies[-1].ver)


def main():
    limits = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(sys.argv[1], options=limits) as channel:
        grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)
        store = Store(channel)
        one_key(store)
        many_keys(store)
        what_is_refused(store, channel)
        long_ones(store)
        two_hundred_puts(store, channel)
    print("every answer is right")


if __name__ == "__main__":
    main()
