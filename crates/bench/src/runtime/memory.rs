//! What workers hold: of many idle sessions, and of a tensor that is only mapped.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallError, Env};
use alknet_core::{BoxFuture, Identity, IdentityKind, ScopeSet};
use alknet_runtime::SessionMode;
use alknet_sessions::TensorFiles;
use alknet_sessions::limits::SESSIONS_OF_TENANT_MAX;
use alknet_tensor::{ContainerWriter, Dtype};
use serde_json::{Value, json};

use super::failed;
use super::lab::SessionBench;
use alknet_tasks::failure::{Result, TaskError};

/// Name of the tensor.
pub(super) const TENSOR: &str = "t";
/// Its size.
const TENSOR_BYTES: u64 = 256 << 20;
const MIB: f64 = 1048576.0;
/// How long workers have to give back what they do not need.
const SETTLE: Duration = Duration::from_secs(2);

/// A file with one tensor, gone when dropped.
pub(super) struct TensorFile {
    folder: tempfile::TempDir,
}

impl TensorFile {
    pub(super) fn make() -> Result<Self> {
        let folder = tempfile::tempdir().map_err(TaskError::io("make a folder"))?;
        let made = Self { folder };
        let file = File::create(made.path()).map_err(TaskError::io("make a tensor file"))?;
        let content = vec![1; TENSOR_BYTES as usize];
        let mut writer = ContainerWriter::plain(file);
        let shape = [TENSOR_BYTES / 4];
        let added = writer.flat(TENSOR, Dtype::F32, &shape, content.into());
        added.map_err(failed("writing a tensor"))?;
        writer.finish().map_err(failed("writing a tensor"))?;
        Ok(made)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("t.safetensors")
    }
}

/// Opens the one file, whatever is asked for.
pub(super) struct OneFileStore(pub(super) PathBuf);

impl TensorFiles for OneFileStore {
    fn open(&self, _: &Env, _: Value) -> BoxFuture<'static, std::result::Result<File, CallError>> {
        let file = File::open(&self.0);
        Box::pin(async { file.map_err(|error| CallError::internal(error.to_string())) })
    }
}

/// How much more the worker holds of a tensor that a script has opened, and of one that it has read,
/// in MiB.
pub(super) async fn tensor(lab: &mut SessionBench) -> Result<(f64, f64)> {
    let source = format!(
        "let data;
         export const open = async () => {{
           data = (await tensor.open({{ id: '00' }})).view('{TENSOR}').data();
           return data.length;
         }};
         export const read = () => {{ let sum = 0; for (let i = 0; i < data.length; i += 1024) sum += data[i]; return sum; }};
         export const nothing = () => 0;"
    );
    let session = lab.open(&source, SessionMode::Service).await?;
    // What loading the module takes is there before the first look.
    lab.export(&session, "nothing", json!(0)).await?;
    let pid = session.info().pid;
    let before = resident(pid)?;
    lab.export(&session, "open", json!(0)).await?;
    let opened = resident(pid)?;
    lab.export(&session, "read", json!(0)).await?;
    let read = resident(pid)?;
    session.kill();
    Ok((opened - before, read - before))
}

/// What idle sessions hold.
pub(super) struct SessionMemory {
    /// All of their workers, in MiB; what they share is counted once.
    pub(super) all_mib: f64,
    /// The middle one of them.
    pub(super) worker_mib: f64,
}

/// Opens so many sessions, has each answer once, and weighs their workers.
pub(super) async fn idle(lab: &mut SessionBench, count: usize) -> Result<SessionMemory> {
    let mut open = Vec::new();
    for at in 0..count {
        let source = format!("let n = {at}; export const next = () => ++n;");
        let tenant = tenant(at / SESSIONS_OF_TENANT_MAX)?;
        let session = lab
            .open_for(Some(tenant), &source, SessionMode::Service)
            .await?;
        lab.export(&session, "next", json!(null)).await?;
        open.push(session);
    }
    tokio::time::sleep(SETTLE).await;
    let pids: BTreeSet<i32> = lab.sessions.list().iter().map(|info| info.pid).collect();
    let weights = pids.iter().map(|pid| proportional(*pid));
    let mut weights: Vec<f64> = weights.collect::<Result<_>>()?;
    weights.sort_by(f64::total_cmp);
    open.iter().for_each(alknet_sessions::ScriptSession::kill);
    Ok(SessionMemory {
        all_mib: weights.iter().sum(),
        worker_mib: weights[weights.len() / 2],
    })
}

/// One of the identities that share the workers: one alone may have a quarter of them.
fn tenant(number: usize) -> Result<Arc<Identity>> {
    let id = format!("tenant{number}");
    Ok(Arc::new(Identity {
        id: id.parse().map_err(failed("naming a tenant"))?,
        kind: IdentityKind::Peer,
        scopes: ScopeSet::default(),
        resources: Default::default(),
        generation: 0,
    }))
}

/// Pages in memory, in MiB.
fn resident(pid: i32) -> Result<f64> {
    let status = read(Path::new(&format!("/proc/{pid}/status")))?;
    line(&status, "VmRSS:")
}

/// The same with what is shared divided by those who share it.
fn proportional(pid: i32) -> Result<f64> {
    let maps = read(Path::new(&format!("/proc/{pid}/smaps_rollup")))?;
    line(&maps, "Pss:")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(TaskError::io(format!("read {}", path.display())))
}

/// A line of the kernel's, which counts in KiB.
fn line(text: &str, name: &str) -> Result<f64> {
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = found.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0 / MIB)
        .ok_or_else(|| failed("asking the kernel")(format!("no line {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_in_kib() {
        let text = "Rss:  100 kB\nPss:                2048 kB\n";
        assert_eq!(line(text, "Pss:").expect("it is there"), 2.0);
        assert!(line(text, "Swap:").is_err());
    }
}
