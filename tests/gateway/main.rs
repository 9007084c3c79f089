//! The gateway over real HTTP/2: real servers, a real gateway process, and clients made from the
//! interface. Each rule of SPEC B and B1 is a test of its own.

#![cfg(feature = "grpc")]

mod abuse;
mod beside;
mod commands;
mod differential;
mod etcd_contest;
mod etcd_ctl;
mod etcd_json;
mod etcd_kv;
mod etcd_lease;
mod etcd_operators;
mod etcd_process;
mod etcd_site;
mod etcd_txn;
mod etcd_watch;
mod etcd_watch_scripted;
mod etcdctl_watch;
#[path = "../support/fake_server.rs"]
mod fake_server;
mod faults;
mod interface;
mod limits;
mod migration;
mod operations;
mod other_languages;
mod proxy;
mod site;
mod streams;
#[path = "../support/mod.rs"]
mod support;
