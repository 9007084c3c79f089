//! The standard health service: SERVING while some server of the group answers.
//!
//! It says whether this gateway is of use, so that a load balancer can choose. Whether writes find a
//! majority is a question for the group, the same behind every gateway, and left to the calls.

use std::net::SocketAddr;

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::interface::key_value_store_server::SERVICE_NAME;
use crate::client::{Client, ClientError};
use crate::limits;

/// The name that stands for the whole gateway.
const EVERYTHING: &str = "";

/// Looks for ever, and reports.
pub(super) async fn watch(reporter: HealthReporter, servers: Vec<SocketAddr>) {
    // A client of its own: its patience is short, and what it asks is in nobody's way.
    let built = Client::builder(servers).request_timeout(limits::GATEWAY_HEALTH_INTERVAL).build();
    let Ok(client) = built else { return };
    loop {
        let asking = client.clone();
        let answered = tokio::task::spawn_blocking(move || any_answers(&asking)).await;
        let status = match answered {
            Ok(true) => ServingStatus::Serving,
            _ => ServingStatus::NotServing,
        };
        report(&reporter, status).await;
        tokio::time::sleep(limits::GATEWAY_HEALTH_INTERVAL).await;
    }
}

/// Sends load balancers elsewhere.
pub(super) async fn stopping(reporter: &HealthReporter) {
    report(reporter, ServingStatus::NotServing).await;
}

async fn report(reporter: &HealthReporter, status: ServingStatus) {
    for service in [EVERYTHING, SERVICE_NAME] {
        reporter.set_service_status(service, status).await;
    }
}

fn any_answers(client: &Client) -> bool {
    let answers = |server| {
        !matches!(
            client.status(server),
            Err(ClientError::Unreachable { .. } | ClientError::TimedOut { .. })
        )
    };
    client.servers().into_iter().any(answers)
}
