//! Registries, peers and downloads as processes, for the tests of the share's commands.
//!
//! Rule: everything that a helper starts ends when its value is dropped, and no helper sleeps: it
//! waits on a condition.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use acervo::limits::CHUNK_BYTES;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{ACERVO, eventually, free_addresses};

/// A process whose standard output and error go to files. Dropping it kills it.
pub struct Process {
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Process {
    pub fn start(mut command: Command, dir: &Path, name: &str) -> Process {
        let (out, err) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let append = |path: &Path| File::options().create(true).append(true).open(path).unwrap();
        let child = command
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(append(&out))
            .stderr(append(&err))
            .spawn()
            .unwrap();
        Process { child, out, err }
    }

    pub fn out(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    pub fn err(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    /// Waits until the process has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the process ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that has ended already cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- {}\n{}", self.err.display(), self.err());
        }
    }
}

/// A registry on a port of its own, running or killed.
pub struct Registry {
    // This field comes first, because the process has to end before its folder is removed.
    process: Option<Process>,
    pub dir: TempDir,
    pub address: SocketAddr,
    flags: Vec<String>,
}

impl Registry {
    pub fn start(flags: &[&str]) -> Registry {
        let mut registry = Registry {
            process: None,
            dir: tempfile::tempdir().unwrap(),
            address: free_addresses(1)[0],
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        };
        registry.restart();
        registry
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts the process again and waits until it listens.
    pub fn restart(&mut self) {
        let mut command = Command::new(ACERVO);
        command.args(["registry", "--listen", &self.address()]).args(&self.flags);
        let process = Process::start(command, self.dir.path(), "registry");
        eventually("the registry listens", || std::net::TcpStream::connect(self.address).ok());
        self.process = Some(process);
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the registry runs")
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The console lines so far, including those of earlier processes.
    pub fn console(&self) -> Vec<String> {
        let path = self.dir.path().join("registry.out");
        let text = std::fs::read_to_string(path).unwrap();
        // The last line may not be complete yet.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| line.trim_end_matches('\n').to_owned()).collect()
    }

    /// Creates a folder for a peer.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    /// Starts `acervo share` and waits until it has joined.
    pub fn share(&self, folder: &Path, more: &[&str]) -> Process {
        let mut command = Command::new(ACERVO);
        command.arg("share").arg(folder).args(["--registry", &self.address()]).args(more);
        let name = format!("share-{}", folder.file_name().unwrap().display());
        let joins = |text: &str| text.matches("joined at ").count();
        let err = self.dir.path().join(format!("{name}.err"));
        // An earlier process on the same folder has written to the same file.
        let before = joins(&std::fs::read_to_string(err).unwrap_or_default());
        let process = Process::start(command, self.dir.path(), &name);
        eventually("the peer joins", || (joins(&process.err()) > before).then_some(()));
        process
    }

    /// Runs a command with this registry to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        run(&[arguments, &["--registry", &self.address()]].concat())
    }
}

/// The exit status and the output of a command that has ended.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> serde_json::Value {
        assert!(self.out.ends_with("}\n"), "one object and a line end: {self:?}");
        serde_json::from_str(&self.out).unwrap()
    }
}

/// Runs `acervo` with these arguments to its end.
pub fn run(arguments: &[&str]) -> Ran {
    let mut command = Command::new(ACERVO);
    command.args(arguments);
    to_end(command)
}

/// Runs any command to its end.
pub fn to_end(mut command: Command) -> Ran {
    let output = command.env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap();
    Ran {
        status: output.status.code().expect("it ended by itself"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Bytes that do not repeat, so that chunks differ.
pub fn noise(length: usize, seed: &str) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let mut file = File::create(folder.join(name)).unwrap();
    file.write_all(bytes).unwrap();
}

/// An `acervo fetch` that runs beside the test.
pub struct FetchCommand<'a> {
    pub registry: &'a Registry,
    pub name: &'a str,
    pub to: &'a Path,
    pub flags: &'a [&'a str],
}

impl FetchCommand<'_> {
    pub fn start(&self) -> Process {
        let mut command = Command::new(ACERVO);
        command.args(["fetch", self.name, "--registry", &self.registry.address(), "--to"]);
        command.arg(self.to).args(self.flags);
        Process::start(command, self.registry.dir.path(), "fetch")
    }
}

/// How many bytes of a partial file have been written, in whole chunks: those with a byte that is
/// not zero. The file's last block is left out, since it names the content and holds none of it.
pub fn arrived(part: &Path) -> usize {
    let bytes = std::fs::read(part).unwrap_or_default();
    let chunks = bytes[..bytes.len().saturating_sub(4096)].chunks(CHUNK_BYTES);
    chunks.filter(|chunk| chunk.iter().any(|byte| *byte != 0)).count() * CHUNK_BYTES
}

pub fn part_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.part"))
}
