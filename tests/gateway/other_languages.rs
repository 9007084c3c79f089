//! A client in Python, written from SPEC B1 alone (`tests/gateway_client.py`).

use std::io::Write;
use std::process::{Command, Stdio};

use crate::site::Site;

/// Names a Python with `grpcio` and `grpcio-tools`; `.ci/run` prepares one.
const PYTHON: &str = "ACERVO_PYTHON_GRPC";

/// The Python to use, or why there is none. A Python that was named is used whatever it has.
fn python() -> Result<String, String> {
    if let Ok(named) = std::env::var(PYTHON) {
        return Ok(named);
    }
    let mut probe = Command::new("python3");
    probe.args(["-c", "import grpc, grpc_tools.protoc"]).stdin(Stdio::null());
    match probe.output() {
        Ok(output) if output.status.success() => Ok("python3".to_owned()),
        Ok(_) => Err("python3 has no grpcio or no grpcio-tools".to_owned()),
        Err(error) => Err(format!("python3 cannot be run: {error}")),
    }
}

#[test]
fn a_client_in_python_made_from_the_specification_gets_every_answer() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => {
            // Past the test harness, which would keep it to itself.
            let _ = writeln!(
                std::io::stderr(),
                "NOT TESTED: a client in Python, because {reason}; set {PYTHON} to one that has \
                 both"
            );
            return;
        }
    };
    let site = Site::start();
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gateway_client.py"))
        .arg(site.gateway.address.to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "every answer is right\n");
}
