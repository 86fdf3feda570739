//! What the node takes: bytes of what is shipped, and memory of an idle machine.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::VmBuilder;

use super::machines::{AlknetBuild, BootBench};
use super::{BENCH, MEGA, WITHOUT, goals};
use crate::rows::{BenchRow, Goal};
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::node::{self, MachineType, NodeCli};

/// The smallest machine that is promised to serve, in MiB: from a disk, of which it reads what it runs.
const SMALL_MIB: u32 = 128;

/// The same where everything lies in memory, twice while it is unpacked.
const SMALL_INITRAMFS_MIB: u32 = 256;

/// How long a machine rests before its memory is read: past every start-up task.
const IDLE_AFTER: Duration = Duration::from_secs(5);

impl BootBench {
    /// Bytes of what is shipped.
    pub(super) fn size_rows(&self) -> Result<Vec<BenchRow>> {
        let size = |path: &Path| {
            let data = std::fs::metadata(path)
                .map_err(TaskError::io(format!("read {}", path.display())))?;
            Ok::<f64, TaskError>(data.len() as f64 / MEGA)
        };
        let stripped = |ours: &AlknetBuild| {
            let stripped = self.scratch.path().join("stripped");
            strip(&ours.binary, &stripped)?;
            size(&stripped)
        };
        let file = |ours: &AlknetBuild, form, role| {
            let path = ours.image.manifest.path(&ours.image.folder, form, role);
            let path = path
                .ok_or_else(|| TaskError::Arguments(format!("no {role:?} in the {form} image")));
            size(&path?)
        };
        let row = |case: &str, ours| BenchRow::lower(BENCH, case, "MB", ours);
        let both = |case: &str, size: &dyn Fn(&AlknetBuild) -> Result<f64>| {
            let bare = size(&self.bare)?;
            Ok::<BenchRow, TaskError>(row(case, size(&self.usual)?).beside(WITHOUT, bare))
        };
        Ok(vec![
            row("kernel (bzImage)", size(&self.kernel.bzimage)?)
                .beside(
                    "Debian cloud kernel, without its modules",
                    size(&self.debian)?,
                )
                .goal(Goal::Ours(goals::KERNEL_MB)),
            both("binary, stripped", &stripped)?,
            both("image: unified kernel image", &|ours| {
                file(ours, ImageForm::Uki, OutputRole::Uki)
            })?
            .goal(Goal::Ours(goals::IMAGE_MB)),
            both("image: initramfs", &|ours| {
                file(ours, ImageForm::Direct, OutputRole::Initrd)
            })?,
            both("image: erofs root", &|ours| {
                file(ours, ImageForm::Erofs, OutputRole::Root)
            })?,
        ])
    }

    /// Memory of an idle machine with as little as is promised to be enough.
    pub(super) fn memory_rows(&self) -> Result<Vec<BenchRow>> {
        let mut rows = Vec::new();
        for (what, form, machine, mib) in [
            ("erofs", ImageForm::Erofs, MachineType::Microvm, SMALL_MIB),
            (
                "initramfs",
                ImageForm::Direct,
                MachineType::Q35,
                SMALL_INITRAMFS_MIB,
            ),
        ] {
            let memory = |ours| Self::idle(&self.cli, self.ours(ours, form, machine)?, mib);
            let (usual, bare) = (memory(&self.usual)?, memory(&self.bare)?);
            let row = |case: String, of: fn(&NodeInfoMemory) -> f64| {
                let row = BenchRow::lower(BENCH, case, "MB", of(&usual) / MEGA);
                row.beside(WITHOUT, of(&bare) / MEGA)
            };
            rows.push(row(
                format!("idle in {mib} MiB, {what}: memory in use (total less available)"),
                NodeInfoMemory::in_use,
            ));
            rows.push(
                row(
                    format!("idle in {mib} MiB, {what}: node resident"),
                    |memory| memory.node_resident_bytes,
                )
                .goal(Goal::Ours(goals::IDLE_MB)),
            );
        }
        Ok(rows)
    }

    fn idle(cli: &NodeCli, machine: VmBuilder, mib: u32) -> Result<NodeInfoMemory> {
        let mut vm = machine.memory_mib(mib).start()?;
        let node = node::wait_ready(&vm)?;
        std::thread::sleep(IDLE_AFTER);
        let answer = cli.call(&node, "node/info")?;
        vm.cut_power()?;
        NodeInfoMemory::of_info(&answer)
    }
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip").arg("-o").args([to, from]).status();
    let status = status.map_err(TaskError::io("run strip"))?;
    if status.success() {
        return Ok(());
    }
    Err(TaskError::Step {
        what: "strip".into(),
        how: status.to_string(),
        log: None,
    })
}

/// The part of `node/info` that tells memory.
#[derive(Debug, PartialEq, serde::Deserialize)]
struct NodeInfoMemory {
    total_bytes: f64,
    available_bytes: f64,
    node_resident_bytes: f64,
}

impl NodeInfoMemory {
    fn of_info(answer: &str) -> Result<Self> {
        let parse = || {
            let value: serde_json::Value = serde_json::from_str(answer)?;
            serde_json::from_value(value["memory"].clone())
        };
        parse().map_err(|error: serde_json::Error| TaskError::Step {
            what: "reading node/info".into(),
            how: error.to_string(),
            log: None,
        })
    }

    fn in_use(&self) -> f64 {
        self.total_bytes - self.available_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_answer() {
        let answer =
            r#"{"memory":{"total_bytes":100,"available_bytes":60,"node_resident_bytes":20}}"#;
        let memory = NodeInfoMemory::of_info(answer).expect("as node/info answers");
        assert_eq!(memory.in_use(), 40.0);
        assert!(NodeInfoMemory::of_info("{}").is_err() && NodeInfoMemory::of_info("x").is_err());
    }
}
