//! The node as a child process of PID 1.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::CloseCode;
use alknet_init::control::{InitMessage, MachineFacts, NodeMessage};
use anyhow::{Context, bail};
use tokio::sync::mpsc;

use super::log::{self, NodeLogRing, StderrFormat};
use super::update::UpdateStream;
use super::vault::NodeVault;
use super::{AlknetNode, ConfigOverlay, ConfigStore, NodeOptions, control};
use crate::cli::{CommandError, CommandExit, chain_text};

/// Serves until PID 1 ends the node.
pub(crate) fn supervised() -> Result<CommandExit, CommandError> {
    // First, before this process opens a descriptor of its own.
    let update_stream = UpdateStream::take_over();
    let ring = NodeLogRing::new();
    log::install(&ring, StderrFormat::Prefixed);
    let served = super::runtime()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(serve(ring, update_stream)));
    served
        .map(|()| CommandExit::Ok)
        .map_err(|error| CommandError::local(chain_text(&error)))
}

async fn serve(ring: NodeLogRing, update_stream: Option<UpdateStream>) -> anyhow::Result<()> {
    let (mut from_init, to_init) = control::open()?;
    let mut early = Vec::new();
    let (config, state_dir, facts, vault, records) = loop {
        match from_init.next().await? {
            Some(NodeMessage::Start {
                config,
                state_dir,
                facts,
                vault,
                records,
                trial: _,
            }) => break (config, state_dir, facts, vault, records),
            Some(NodeMessage::Log { record }) => ring.push(record),
            // PID 1 may send these messages before the start. The node answers them after it.
            Some(other) => early.push(other),
            None => bail!("PID 1 closed the channel before it said what to serve"),
        }
    };
    let state_dir = Path::new(&state_dir);
    let vault = vault
        .then(|| NodeVault::take_over(state_dir, &config.vault, to_init.clone()))
        .transpose()?;
    let options = NodeOptions {
        config: &config,
        overlay: ConfigOverlay::default(),
        config_store: ConfigStore::init(to_init.clone()),
        problems: Vec::new(),
        verbose: false,
        state_dir,
        facts: *facts,
        role: "appliance",
        ring: ring.clone(),
        to_init: Some(to_init.clone()),
        update_stream,
        vault: vault.clone(),
        records,
        credentials: None,
    };
    let node = AlknetNode::start(options).await?;
    to_init
        .send(InitMessage::Ready {
            status: node.status_for_init(),
        })
        .await?;
    let mut early = early.into_iter();
    loop {
        let message = match early.next() {
            Some(message) => Some(message),
            None => from_init.next().await?,
        };
        match message {
            None => bail!("PID 1 closed the channel"),
            Some(NodeMessage::CallItself) => node.self_caller.begin(&to_init),
            Some(NodeMessage::ConfigKept { n, error }) => {
                node.identities.reloader.config_stored(n, error)
            }
            Some(NodeMessage::Drain {
                deadline_ms,
                reason,
                locked,
            }) => {
                tracing::info!("draining: {reason}");
                let why = match locked {
                    true => (CloseCode::Locked, "the vault is locked"),
                    false => (CloseCode::Shutdown, "shutting down"),
                };
                node.drain(Duration::from_millis(deadline_ms), why).await;
                return Ok(());
            }
            Some(NodeMessage::Facts { facts }) => update_facts(&node, *facts, &to_init).await?,
            Some(NodeMessage::Health { n }) => answer_health(&node, n, &to_init),
            Some(NodeMessage::Log { record }) => ring.push(record),
            Some(NodeMessage::Start { .. }) => bail!("PID 1 started this node twice"),
            Some(NodeMessage::StorageChecked {
                n,
                storage,
                problems,
            }) => node.storage.checked(n, *storage, problems),
            Some(NodeMessage::UpdateAnswer { n, answer }) => node.updates.answered(n, answer),
            Some(NodeMessage::VaultEvents { records }) => {
                if let Some(vault) = &vault {
                    vault.record(&records);
                }
            }
        }
    }
}

async fn update_facts(
    node: &AlknetNode,
    facts: MachineFacts,
    to_init: &mpsc::Sender<InitMessage>,
) -> anyhow::Result<()> {
    let before = node.status();
    node.facts.store(Arc::new(facts));
    // PID 1 also sends facts after a person locked or opened the vault at the machine.
    node.capabilities.refresh();
    // An unchanged status would wake PID 1 without a reason.
    if node.status() != before {
        let status = node.status_for_init();
        to_init.send(InitMessage::Status { status }).await?;
    }
    Ok(())
}

/// Answers from a task of its own: the accept loops get a second to prove that they run, and the
/// other messages must not wait for that.
fn answer_health(node: &AlknetNode, n: u64, to_init: &mpsc::Sender<InitMessage>) {
    let server = Arc::clone(&node.server);
    let to_init = to_init.clone();
    tokio::spawn(async move {
        let health = server.health().await;
        let answer = InitMessage::Health {
            n,
            ok: health.ok,
            detail: health.detail,
        };
        // If PID 1 is gone, this process is about to end, too.
        to_init.send(answer).await.ok();
    });
}
