//! scp beside the command line: the client and the server of OpenSSH, from pinned packages, with keys of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{User, chown, geteuid};
use tempfile::TempDir;

use super::peers::unpack;
use super::process::cpu_seconds;
use crate::call::measure::failed;
use crate::http::{PeerProcess, free_port};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

/// Packages of the client and the server, and of the one library that a small system lacks.
const PACKAGES: [&str; 3] = ["openssh-client", "openssh-server", "libwrap0"];

/// Who the server is where root starts the benchmark: as root it would need a user `sshd` and a folder of the system's.
/// Every Debian has this user.
const UNPRIVILEGED: &str = "daemon";

/// The server with its keys and files.
pub(super) struct SshServer {
    // Ended before its folder is removed.
    process: PeerProcess,
    folder: TempDir,
    user: User,
}

impl SshServer {
    pub(super) fn start(cx: &XtaskContext) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(TaskError::io("make a folder"))?;
        let root = folder.path();
        // The server is another user.
        set_mode(root, 0o755)?;
        for package in PACKAGES {
            unpack(cx, package, &programs(root))?;
        }
        let user = server_user()?;
        let files = root.join("files");
        std::fs::create_dir(&files).map_err(TaskError::io("make a folder"))?;
        for key in ["host", "client"] {
            let mut make = program(root, "usr/bin/ssh-keygen");
            make.args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(root.join(key));
            cx.run(&mut make, "make a key", "ssh-keygen")?;
        }
        for path in [root.join("host"), files] {
            let given = chown(&path, Some(user.uid), Some(user.gid));
            given.map_err(failed("giving a file to the server"))?;
        }
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port()?);
        let config = root.join("sshd_config");
        let written = std::fs::write(&config, server_config(root, address));
        written.map_err(TaskError::io("write a configuration"))?;
        let mut serve = program(root, "usr/sbin/sshd");
        serve.args(["-D", "-e", "-f"]).arg(config);
        if geteuid().is_root() {
            serve.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        Ok(Self {
            process: PeerProcess::start(serve, address)?,
            folder,
            user,
        })
    }

    /// The command that copies a file of this computer to the server.
    pub(super) fn upload(&self, file: &Path) -> Command {
        let mut command = self.scp();
        command.arg(file).arg(self.remote());
        command
    }

    /// The command that copies the file back.
    pub(super) fn download(&self, to: &Path) -> Command {
        let mut command = self.scp();
        command.arg(self.remote()).arg(to);
        command
    }

    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.process.id())
    }

    fn remote(&self) -> String {
        let file = self.folder.path().join("files/copied");
        format!("{}@127.0.0.1:{}", self.user.name, file.display())
    }

    fn scp(&self) -> Command {
        let root = self.folder.path();
        let mut command = program(root, "usr/bin/scp");
        command.args(["-q", "-F", "/dev/null", "-S"]);
        command.arg(programs(root).join("usr/bin/ssh"));
        let identity = format!("IdentityFile={}", root.join("client").display());
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            &identity,
        ] {
            command.args(["-o", option]);
        }
        command.args(["-P", &self.process.address().port().to_string()]);
        command
    }
}

fn server_config(root: &Path, address: SocketAddr) -> String {
    let root = root.display();
    format!(
        "Port {}\nListenAddress {}\nHostKey {root}/host\nAuthorizedKeysFile {root}/client.pub\n\
PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
Subsystem sftp internal-sftp\n",
        address.port(),
        address.ip()
    )
}

fn server_user() -> Result<User> {
    let found = match geteuid().is_root() {
        true => User::from_name(UNPRIVILEGED),
        false => User::from_uid(geteuid()),
    };
    let found = found.map_err(failed("finding a user"))?;
    found.ok_or_else(|| failed("finding a user")("the system has no such user"))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).map_err(TaskError::io("open a folder"))
}

fn programs(root: &Path) -> PathBuf {
    root.join("programs")
}

/// A program of the packages, with the library beside it.
fn program(root: &Path, path: &str) -> Command {
    let mut command = Command::new(programs(root).join(path));
    let libraries = programs(root).join("usr/lib/x86_64-linux-gnu");
    command.env("LD_LIBRARY_PATH", libraries);
    command
}
