//! The network and the time from it, as one part of PID 1 that PID 1 restarts when it fails.

use std::{
    net::IpAddr,
    time::{Duration, UNIX_EPOCH},
};

use alknet_init_net::{
    NetError, NetEvent, NetHandle, NetManager, NetPlan, NetState,
    time::{TimeEvent, TimeSources, TimeSync},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    clock::BUILD_TIME_S, control::LinkFacts, machine::MachineEvent, settings::NodeSettings,
};

/// Events of the network that wait for PID 1's loop.
const EVENTS_MAX: usize = 64;

/// What the network reports to the loop.
#[derive(Debug)]
pub(crate) enum NetworkEvent {
    /// The cards and name servers as they are now.
    Links {
        links: Vec<LinkFacts>,
        dns: Vec<IpAddr>,
        ready: bool,
    },
    /// A line for the log.
    Log {
        level: &'static str,
        message: String,
    },
    /// The clock was set from a time server.
    Synced,
}

/// The running network, if it runs.
#[derive(Debug)]
pub(crate) struct InitNetwork {
    events: mpsc::Sender<MachineEvent>,
    running: Option<NetworkTask>,
}

#[derive(Debug)]
struct NetworkTask {
    requested: watch::Sender<NetworkConfig>,
    task: JoinHandle<()>,
}

/// The configuration that the part is to apply.
#[derive(Clone, Debug)]
struct NetworkConfig {
    plan: NetPlan,
    servers: Vec<String>,
    fail: bool,
}

impl NetworkConfig {
    fn from_settings(settings: &NodeSettings) -> Self {
        let links = settings.config.network.clone();
        Self {
            plan: NetPlan::new(links, settings.hostname()),
            servers: settings.config.node.time_servers.clone(),
            fail: false,
        }
    }
}

impl InitNetwork {
    /// Name of this part in the log.
    pub(crate) const PART: &str = "the network";

    pub(crate) const fn new(events: mpsc::Sender<MachineEvent>) -> Self {
        Self {
            events,
            running: None,
        }
    }

    /// Starts the network, in place of one that failed.
    pub(crate) fn start(&mut self, settings: &NodeSettings) -> Result<(), NetError> {
        self.quiet();
        let config = NetworkConfig::from_settings(settings);
        let (network, news) = mpsc::channel(EVENTS_MAX);
        let handle = NetManager::start(config.plan.clone(), network)?;
        let (requested, requests) = watch::channel(config);
        let work = attend(handle, news, requests, self.events.clone());
        // Two tasks: the inner one may panic, and the outer one reports that.
        let task = tokio::spawn(report(tokio::spawn(work), self.events.clone()));
        self.running = Some(NetworkTask { requested, task });
        Ok(())
    }

    /// Applies other settings. Cards that they do not change are not disturbed.
    pub(crate) fn apply(&self, settings: &NodeSettings) {
        if let Some(running) = &self.running {
            running
                .requested
                .send_replace(NetworkConfig::from_settings(settings));
        }
    }

    /// Stops reporting: the machine goes down, or another network is started.
    pub(crate) fn quiet(&mut self) {
        if let Some(running) = self.running.take() {
            // The part itself ends when the sender of its configuration is dropped.
            running.task.abort();
        }
    }

    /// Makes the part fail, for a test.
    pub(crate) fn fail(&self) {
        if let Some(running) = &self.running {
            running.requested.send_modify(|config| config.fail = true);
        }
    }
}

/// Reports the end of the part, which is always unexpected.
async fn report(work: JoinHandle<String>, events: mpsc::Sender<MachineEvent>) {
    let why = work.await.unwrap_or_else(|error| error.to_string());
    let part = InitNetwork::PART;
    // The loop ends only with the machine.
    let _ = events.send(MachineEvent::Failed { part, why }).await;
}

/// Passes on the network's events and the requested configuration, until one of the two ends.
async fn attend(
    mut handle: NetHandle,
    mut news: mpsc::Receiver<NetEvent>,
    mut requests: watch::Receiver<NetworkConfig>,
    events: mpsc::Sender<MachineEvent>,
) -> String {
    let (clock, mut ticks) = mpsc::channel(EVENTS_MAX);
    let build_time = UNIX_EPOCH + Duration::from_secs(BUILD_TIME_S);
    let mut offered = Vec::new();
    let mut sources = TimeSources {
        servers: requests.borrow().servers.clone(),
        resolvers: Vec::new(),
    };
    let mut time_sync = TimeSync::start(sources.clone(), build_time, clock);
    loop {
        let event = tokio::select! {
            why = handle.ended() => return why,
            why = time_sync.ended() => return why,
            config = requests.changed() => {
                if config.is_err() {
                    return "its owner has ended".to_owned();
                }
                let config = requests.borrow_and_update().clone();
                if config.fail {
                    handle.inject_panic().await;
                }
                sources.servers = time_servers(&config.servers, &offered);
                handle.apply(config.plan).await;
                None
            }
            Some(event) = news.recv() => match event {
                NetEvent::Changed(state) => {
                    offered = state.ntp.iter().map(ToString::to_string).collect();
                    sources.servers = time_servers(&requests.borrow().servers, &offered);
                    sources.resolvers.clone_from(&state.resolvers);
                    Some(links(state))
                }
                NetEvent::Log { level, message } => {
                    let level = level.as_str();
                    Some(NetworkEvent::Log { level, message })
                }
                _ => None,
            },
            Some(tick) = ticks.recv() => time_news(tick),
        };
        if let Some(news) = event
            && events.send(MachineEvent::Network(news)).await.is_err()
        {
            return "the loop ended".to_owned();
        }
        time_sync.update(sources.clone());
    }
}

/// The configured servers, or else those that the network offers.
fn time_servers(configured: &[String], offered: &[String]) -> Vec<String> {
    // An administrator who names servers may trust no others with the clock.
    if configured.is_empty() {
        return offered.to_vec();
    }
    configured.to_vec()
}

fn time_news(event: TimeEvent) -> Option<NetworkEvent> {
    let (level, message) = match event {
        TimeEvent::Synced { .. } => return Some(NetworkEvent::Synced),
        TimeEvent::Stepped { offset_ms } => ("info", format!("clock set by {offset_ms} ms")),
        // A network without time servers is an ordinary one: the console shows the state of the
        // clock.
        TimeEvent::Failed { reason } => ("debug", format!("no time: {reason}")),
        _ => return None,
    };
    Some(NetworkEvent::Log { level, message })
}

fn links(state: NetState) -> NetworkEvent {
    let ready = state.ready();
    let links = state.links.into_iter().map(|link| LinkFacts {
        name: link.name,
        mac: link.mac,
        up: link.up,
        addresses: link.addresses,
        gateways: link.gateways,
        sources: link.sources,
    });
    NetworkEvent::Links {
        links: links.collect(),
        dns: state.dns,
        ready,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_time_servers_win() {
        let (own, offered) = (vec!["a".to_owned()], vec!["b".to_owned()]);
        assert_eq!(time_servers(&own, &offered), own);
        assert_eq!(time_servers(&[], &offered), offered);
        assert!(time_servers(&[], &[]).is_empty());
    }
}
