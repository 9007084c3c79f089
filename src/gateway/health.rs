//! The standard health service: SERVING while some server of the group answers.
//!
//! It says whether this gateway is of use, so that a load balancer can choose. Whether writes find
//! a majority is a question for the group, the same behind every gateway, and left to the calls.
//!
//! What the server says about who leads is passed on to the calls' clients: writes that go straight
//! to the leader cost the group a hop less. What it says of its group is told with etcd's answers.

use std::time::{Duration, Instant};

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::etcd::EtcdServices;
use super::interface::key_value_store_server::SERVICE_NAME;
use crate::client::Client;
use crate::limits::GATEWAY_CLIENTS;

/// How often a gateway looks whether a server answers, for the health service.
const GATEWAY_HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// The name that stands for the whole gateway.
const EVERYTHING: &str = "";

/// Looks for ever, and reports; tells the clients of the calls who leads.
pub(super) async fn watch(
    reporter: HealthReporter,
    clients: [Client; GATEWAY_CLIENTS],
    etcd: EtcdServices,
) {
    let asking = clients[0].asynchronous();
    loop {
        let until = Instant::now() + GATEWAY_HEALTH_INTERVAL;
        let answer = asking.until(until).any_status().await.ok();
        if let Some(status) = &answer {
            etcd.learn(status);
        }
        let leader = answer.as_ref().and_then(|status| status.leader.as_deref());
        let leader = leader.and_then(|address| address.parse().ok());
        clients.iter().for_each(|client| client.hint_leader(leader));
        let status = match answer {
            Some(_) => ServingStatus::Serving,
            None => ServingStatus::NotServing,
        };
        report(&reporter, status).await;
        tokio::time::sleep(GATEWAY_HEALTH_INTERVAL).await;
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
