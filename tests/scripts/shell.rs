//! Command lines as they are typed, run by a shell that knows `acervo`.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::run::Left;
use crate::support::ACERVO;

/// `acervo` asks the servers, or the gateway, of the test when the line names none.
const KNOWN: &str = r#"
acervo() {
    command=$1; shift
    case "$command $* " in
        *" --servers "*) "$ACERVO" "$command" "$@" ;;
        "kvs "*) operation=$1; shift
            "$ACERVO" kvs "$operation" --host "$GATEWAY_HOST" --porta "$GATEWAY_PORT" "$@" ;;
        *) "$ACERVO" "$command" --servers "$SERVERS" "$@" ;;
    esac
}
"#;

pub fn run(line: &str, servers: &str, gateway: Option<SocketAddr>) -> Result<Left, String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{KNOWN}\n{line}")]).env("ACERVO", ACERVO).env("SERVERS", servers);
    if let Some(gateway) = gateway {
        shell.env("GATEWAY_HOST", gateway.ip().to_string());
        shell.env("GATEWAY_PORT", gateway.port().to_string());
    }
    let output = shell.env_remove("RUST_LOG").stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("there is no shell: {error}"))?;
    let status = output.status.code().ok_or("it was killed")?;
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(Left { status, out: output.stdout, err })
}
