//! A real etcd beside the gateway, to be asked the same.
//!
//! `ACERVO_ETCD_BIN` names a folder that has `etcd` and `etcdctl`; without it those in PATH are
//! taken. Where there is none the tests that compare say so and pass.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use acervo::gateway::interface::etcd::etcdserverpb::RangeRequest;
use acervo::gateway::interface::etcd::etcdserverpb::kv_client::KvClient;
use tempfile::TempDir;
use tonic::transport::Endpoint;

use crate::site::waiting;
use crate::support::{eventually, free_addresses};

/// Where one of etcd's programs is.
pub fn program(name: &str) -> PathBuf {
    std::env::var_os("ACERVO_ETCD_BIN")
        .map_or_else(|| name.into(), |dir| PathBuf::from(dir).join(name))
}

/// Whether one of etcd's programs can be run; where it cannot, this says so.
pub fn is_installed(name: &str) -> bool {
    let mut version = Command::new(program(name));
    version.env("ETCDCTL_API", "3").arg(if name == "etcd" { "--version" } else { "version" });
    let runs = version.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !runs {
        println!("SKIPPED: there is no {name} in PATH or in ACERVO_ETCD_BIN");
    }
    runs
}

/// A real etcd, which is killed when this is dropped.
pub struct Etcd {
    pub address: SocketAddr,
    child: Child,
    _dir: TempDir,
}

impl Etcd {
    /// Starts one on an empty directory and waits until it answers.
    pub fn start() -> Etcd {
        let [address, peer] = free_addresses(2)[..] else { unreachable!("two were asked for") };
        let dir = tempfile::tempdir().unwrap();
        let (client_url, peer_url) = (format!("http://{address}"), format!("http://{peer}"));
        let child = Command::new(program("etcd"))
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let etcd = Etcd { address, child, _dir: dir };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        eventually("etcd answers", || runtime.block_on(etcd.is_asked()));
        etcd
    }

    /// `None` while it does not answer.
    async fn is_asked(&self) -> Option<()> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let mut client = KvClient::new(endpoint.connect().await.ok()?);
        let request = RangeRequest { key: "x".into(), ..RangeRequest::default() };
        client.range(waiting(request)).await.ok().map(drop)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
