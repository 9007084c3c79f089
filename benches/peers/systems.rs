//! The systems that are measured, and how three servers of each are started on this machine: with a
//! log that is synced before a write is answered, in temporary folders, on loopback.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use acervo::bench::{Distribution, Mix, StoreLoad, StoreProtocol};
use tempfile::TempDir;

use crate::Outcome;
use crate::dialects::{Draw, Etcd, PeerOp, Redis, ZooKeeper};
use crate::driver::{Dialect, Framed};
use crate::floor::{self, Echo, Floor};
use crate::support::{Group, free_addresses};

/// Where Debian's package of ZooKeeper has its libraries.
const ZOOKEEPER_JARS: [&str; 3] = [
    "/usr/share/java/zookeeper.jar",
    "/usr/share/java/slf4j-log4j12.jar",
    "/usr/share/java/log4j-1.2.jar",
];
/// How long the servers of a system may take until one of them leads.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A system, as it is configured here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// Two hops and an fdatasync at each server, and nothing else.
    Floor {
        followers_needed: usize,
    },
    Acervo {
        is_ack_all: bool,
    },
    /// Servers of Acervo that are asked as if they were etcd's.
    AcervoAsEtcd,
    Redis,
    ZooKeeper,
    Etcd,
}

impl System {
    pub const ALL: [System; 8] = [
        System::Acervo { is_ack_all: true },
        System::Acervo { is_ack_all: false },
        System::Redis,
        System::ZooKeeper,
        System::Etcd,
        System::AcervoAsEtcd,
        System::Floor { followers_needed: 2 },
        System::Floor { followers_needed: 1 },
    ];

    /// The word by which it is chosen.
    pub fn name(self) -> &'static str {
        match self {
            System::Floor { followers_needed: 1 } => "floor-one",
            System::Floor { .. } => "floor-both",
            System::Acervo { is_ack_all: true } => "acervo",
            System::Acervo { is_ack_all: false } => "acervo-majority",
            System::AcervoAsEtcd => "acervo-as-etcd",
            System::Redis => "redis",
            System::ZooKeeper => "zookeeper",
            System::Etcd => "etcd",
        }
    }

    /// The heading of its column.
    pub fn title(self) -> &'static str {
        match self {
            System::Floor { followers_needed: 1 } => "floor, one follower",
            System::Floor { .. } => "floor, both followers",
            System::Acervo { is_ack_all: true } => "Acervo, `--ack all`",
            System::Acervo { is_ack_all: false } => "Acervo, `--ack majority`",
            System::AcervoAsEtcd => "Acervo, asked as etcd is",
            System::Redis => "Redis, AOF always, `WAIT 2`",
            System::ZooKeeper => "ZooKeeper",
            System::Etcd => "etcd",
        }
    }

    /// Which release it is, or why it cannot be measured here.
    pub fn version(self) -> Result<String, String> {
        let said_by = |program: &str, package: &str| {
            let mut command = Command::new(program);
            let said = command.arg("--version").stderr(Stdio::null()).output();
            let said = said.map_err(|_| format!("Debian's {package} is not installed"))?;
            let text = String::from_utf8_lossy(&said.stdout);
            let line = text.lines().next().unwrap_or_default();
            // Redis adds how it was built.
            Ok(line.split(" sha=").next().unwrap_or(line).trim().to_owned())
        };
        match self {
            System::Floor { .. } => Ok("of this repository".to_owned()),
            System::Acervo { .. } | System::AcervoAsEtcd => {
                Ok(format!("acervo {}", env!("CARGO_PKG_VERSION")))
            }
            System::Redis => said_by("redis-server", "redis-server"),
            System::Etcd => said_by("etcd", "etcd-server"),
            System::ZooKeeper => {
                let java = said_by("java", "default-jre-headless")?;
                let jar = std::fs::canonicalize(ZOOKEEPER_JARS[0])
                    .map_err(|_| "Debian's zookeeper is not installed".to_owned())?;
                let name = jar.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                Ok(format!("{name}, {java}"))
            }
        }
    }

    /// Whether it has reads that a majority confirms. Redis has none, and the floor no reads.
    pub fn offers(self, op: PeerOp) -> bool {
        match op {
            PeerOp::Put => true,
            PeerOp::Fill | PeerOp::Get => !matches!(self, System::Floor { .. }),
            PeerOp::GetLinearizable => !matches!(self, System::Floor { .. } | System::Redis),
        }
    }

    /// Whether it is another program, whose failures here are told and no more.
    pub fn is_of_others(self) -> bool {
        matches!(self, System::Redis | System::ZooKeeper | System::Etcd)
    }

    /// Whether a client may have several requests under way on its connection.
    pub fn pipelines(self) -> bool {
        !matches!(self, System::Floor { .. })
    }
}

/// What a system's data are.
#[derive(Clone, Copy, Debug)]
pub struct PeerData {
    pub keys: u64,
    pub value_bytes: usize,
}

/// The running servers of a system. Dropping it ends them and removes their data.
pub struct Running {
    pub system: System,
    pub addresses: Vec<SocketAddr>,
    processes: Processes,
}

enum Processes {
    Floor(Floor),
    Acervo(Box<Group>),
    Others(Others),
}

struct Others {
    children: Vec<Child>,
    dir: TempDir,
}

impl Drop for Others {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Others {
    fn new() -> Outcome<Others> {
        Ok(Others { children: Vec::new(), dir: tempfile::tempdir()? })
    }

    /// The folder of server `at`, which is there.
    fn folder(&self, at: usize) -> Outcome<PathBuf> {
        let folder = self.dir.path().join(format!("server-{at}"));
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    fn spawn(&mut self, mut command: Command) -> Outcome<()> {
        let at = self.children.len();
        let log = File::create(self.dir.path().join(format!("server-{at}.log")))?;
        let child = command
            .current_dir(self.folder(at)?)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.children.push(child);
        Ok(())
    }

    /// The end of what the first server has logged, for an error.
    fn last_words(&self) -> String {
        let log = std::fs::read(self.dir.path().join("server-0.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

impl Running {
    /// Starts three servers. Whether they take writes shows when they are filled.
    pub fn start(system: System) -> Outcome<Running> {
        Running::start_servers(system, 3)
    }

    /// Starts so many servers of Acervo, or the three of another system.
    pub fn start_servers(system: System, servers: usize) -> Outcome<Running> {
        let (addresses, processes) = match system {
            System::Floor { followers_needed } => {
                let floor = Floor::start(followers_needed, floor::File::Appended);
                (vec![floor.leader], Processes::Floor(floor))
            }
            System::Acervo { is_ack_all } => {
                let ack = if is_ack_all { "all" } else { "majority" };
                let group = Group::start(servers, &["--console", "off", "--ack", ack]);
                (group.addresses(), Processes::Acervo(Box::new(group)))
            }
            System::AcervoAsEtcd => start_acervo_as_etcd(servers)?,
            System::Redis => start_redis()?,
            System::ZooKeeper => start_zookeeper()?,
            System::Etcd => start_etcd()?,
        };
        Ok(Running { system, addresses, processes })
    }

    /// The processes that serve.
    pub fn servers(&self) -> Vec<u32> {
        match &self.processes {
            Processes::Floor(floor) => floor.processes(),
            Processes::Acervo(group) => (0..group.servers.len()).map(|at| group.pid(at)).collect(),
            Processes::Others(others) => others.children.iter().map(Child::id).collect(),
        }
    }

    /// The servers of Acervo, to be killed and started.
    pub fn group_mut(&mut self) -> Outcome<&mut Group> {
        match &mut self.processes {
            Processes::Acervo(group) => Ok(group),
            _ => Err("these servers are not killed one by one".into()),
        }
    }

    /// The server that leads. Where there is none yet, it waits.
    pub fn leader(&self) -> Outcome<SocketAddr> {
        let leads: fn(SocketAddr) -> Outcome<bool> = match &self.processes {
            Processes::Floor(floor) => return Ok(floor.leader),
            Processes::Acervo(group) => return Ok(self.addresses[group.leader()]),
            Processes::Others(_) => match self.system {
                System::ZooKeeper => zookeeper_leads,
                System::Etcd => etcd_leads,
                _ => return Ok(self.addresses[0]),
            },
        };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            for address in &self.addresses {
                if leads(*address).unwrap_or(false) {
                    return Ok(*address);
                }
            }
            if Instant::now() > deadline {
                return Err(format!("nobody leads: {}", self.last_words()).into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The end of what a server has logged, for an error.
    pub fn last_words(&self) -> String {
        match &self.processes {
            Processes::Others(others) => others.last_words(),
            _ => String::new(),
        }
    }

    /// What the clients of a load say.
    pub fn dialect(
        &self,
        op: PeerOp,
        data: PeerData,
        clients: usize,
        pipeline: usize,
    ) -> Box<dyn Dialect> {
        let draw = Draw::new(op, data.keys, data.value_bytes);
        match self.system {
            System::Floor { .. } => Box::new(Framed(Echo)),
            System::Acervo { .. } => {
                let load = StoreLoad {
                    mix: match op {
                        PeerOp::Fill => Mix::Fill,
                        PeerOp::Put => Mix::Put,
                        PeerOp::Get | PeerOp::GetLinearizable => Mix::Get,
                    },
                    linearizable: op == PeerOp::GetLinearizable,
                    distribution: Distribution::Uniform,
                    keys: data.keys,
                    value_bytes: data.value_bytes,
                };
                let mut identities = rand::make_rng();
                Box::new(Framed(StoreProtocol::new(load, clients, pipeline, &mut identities)))
            }
            System::Redis => Box::new(Redis::new(draw, clients)),
            System::ZooKeeper => Box::new(ZooKeeper::new(draw, clients, pipeline)),
            System::Etcd | System::AcervoAsEtcd => {
                Box::new(Etcd::new(draw, clients, self.addresses[0]))
            }
        }
    }
}

/// The addresses are those of the gateways, one in each server. As with etcd a write waits for a
/// majority of the disks.
fn start_acervo_as_etcd(servers: usize) -> Outcome<(Vec<SocketAddr>, Processes)> {
    let gateways = free_addresses(servers);
    let mut group = Group::prepare(servers, &["--console", "off", "--ack", "majority"]);
    for (at, gateway) in gateways.iter().enumerate() {
        group.start_server_with(at, &["--gateway", &gateway.to_string()]);
    }
    (0..servers).for_each(|at| group.wait_until_listening(at));
    Ok((gateways, Processes::Acervo(Box::new(group))))
}

fn start_redis() -> Outcome<(Vec<SocketAddr>, Processes)> {
    let addresses = free_addresses(3);
    let mut others = Others::new()?;
    for (at, address) in addresses.iter().enumerate() {
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()])
            .args(["--protected-mode", "no", "--save", "", "--daemonize", "no"])
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .args(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"])
            .arg("--dir")
            .arg(others.folder(at)?);
        if at > 0 {
            let [ip, port] = [addresses[0].ip().to_string(), addresses[0].port().to_string()];
            command.args(["--replicaof", &ip, &port]);
        }
        others.spawn(command)?;
    }
    Ok((addresses, Processes::Others(others)))
}

fn start_zookeeper() -> Outcome<(Vec<SocketAddr>, Processes)> {
    let all = free_addresses(9);
    let (clients, between) = all.split_at(3);
    let mut others = Others::new()?;
    let servers: String = (0..3)
        .map(|at| {
            let [data, election] = [between[at], between[3 + at]];
            format!("server.{}={data}:{}\n", at + 1, election.port())
        })
        .collect();
    for (at, address) in clients.iter().enumerate() {
        let folder = others.folder(at)?;
        std::fs::write(folder.join("myid"), format!("{}", at + 1))?;
        let config = format!(
            "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPort={}\n\
             clientPortAddress={}\nmaxClientCnxns=0\nadmin.enableServer=false\n\
             4lw.commands.whitelist=srvr\n{servers}",
            folder.display(),
            address.port(),
            address.ip()
        );
        let path = folder.join("zoo.cfg");
        std::fs::write(&path, config)?;
        let mut command = Command::new("java");
        command
            .args(["-Xmx1000m", "-Dzookeeper.forceSync=yes", "-Dzookeeper.jmx.log4j.disable=true"])
            .arg("-Dzookeeper.root.logger=WARN,CONSOLE")
            .arg("-Dlog4j.configuration=file:/etc/zookeeper/conf_example/log4j.properties")
            .arg(format!("-Dzookeeper.log.dir={}", folder.display()))
            .args(["-cp", &ZOOKEEPER_JARS.join(":")])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(path);
        others.spawn(command)?;
    }
    Ok((clients.to_vec(), Processes::Others(others)))
}

fn start_etcd() -> Outcome<(Vec<SocketAddr>, Processes)> {
    let all = free_addresses(6);
    let (clients, between) = all.split_at(3);
    let mut others = Others::new()?;
    let cluster: Vec<String> =
        (0..3).map(|at| format!("server-{at}=http://{}", between[at])).collect();
    for at in 0..3 {
        let [client, peer] = [clients[at], between[at]].map(|address| format!("http://{address}"));
        let mut command = Command::new("etcd");
        command
            .args(["--name", &format!("server-{at}"), "--log-level", "warn"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
            .args(["--quota-backend-bytes", "8589934592", "--data-dir"])
            .arg(others.folder(at)?.join("data"));
        others.spawn(command)?;
    }
    Ok((clients.to_vec(), Processes::Others(others)))
}

/// What a server says to a few bytes, to the end.
fn say(address: SocketAddr, words: &[u8]) -> Outcome<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(words)?;
    let mut answer = Vec::new();
    stream.take(1024 * 1024).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn zookeeper_leads(address: SocketAddr) -> Outcome<bool> {
    Ok(say(address, b"srvr")?.contains("Mode: leader"))
}

fn etcd_leads(address: SocketAddr) -> Outcome<bool> {
    let metrics = say(address, b"GET /metrics HTTP/1.0\r\nHost: etcd\r\n\r\n")?;
    Ok(metrics.lines().any(|line| line == "etcd_server_is_leader 1"))
}
