//! Other servers of files over HTTP: nginx with its module for WebDAV, and `rclone serve webdav`. Neither syncs a file
//! before it answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::generate_simple_self_signed;
use tempfile::TempDir;

use super::client::DavRoot;
use super::folder::disk_folder;
use super::process::cpu_seconds;
use crate::call::measure::failed;
use crate::http::{PeerProcess, free_port, pinned_program};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::sources;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DavPeer {
    Nginx,
    Rclone,
}

impl DavPeer {
    pub(super) const ALL: [Self; 2] = [Self::Nginx, Self::Rclone];

    /// The name in rows.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Rclone => "rclone",
        }
    }
}

/// Both servers with their files.
pub(super) struct DavPeers {
    nginx: DavPeerServer,
    rclone: DavPeerServer,
    folder: TempDir,
}

struct DavPeerServer {
    process: PeerProcess,
    files: PathBuf,
}

impl DavPeers {
    pub(super) fn start(cx: &XtaskContext) -> Result<Self> {
        let folder = disk_folder()?;
        let root = folder.path();
        write_certificate(root)?;
        let nginx = start_nginx(&pinned_program(cx, "nginx")?, root)?;
        let unpacked = root.join("rclone-package");
        unpack(cx, "rclone", &unpacked)?;
        let rclone = start_rclone(&unpacked.join("usr/bin/rclone"), root)?;
        Ok(Self {
            nginx,
            rclone,
            folder,
        })
    }

    fn server(&self, peer: DavPeer) -> &DavPeerServer {
        match peer {
            DavPeer::Nginx => &self.nginx,
            DavPeer::Rclone => &self.rclone,
        }
    }

    pub(super) fn root(&self, peer: DavPeer) -> DavRoot {
        DavRoot {
            address: self.server(peer).process.address(),
            prefix: "",
            token: None,
        }
    }

    pub(super) fn cpu_seconds(&self, peer: DavPeer) -> Result<f64> {
        cpu_seconds(self.server(peer).process.id())
    }

    /// Where a server keeps the file at a path, which begins with a slash.
    pub(super) fn file(&self, peer: DavPeer, path: &str) -> PathBuf {
        let path = path.trim_start_matches('/');
        self.server(peer).files.join(path)
    }

    /// Room on the same disk.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Unpacks a pinned package of Debian.
pub(super) fn unpack(cx: &XtaskContext, package: &str, to: &Path) -> Result<()> {
    let archive = sources::obtain(cx, package)?.path;
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("--extract").arg(archive).arg(to);
    cx.run(&mut unpack, &format!("unpack {package}"), "unpack")
}

fn write_certificate(root: &Path) -> Result<()> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = generate_simple_self_signed(names).map_err(failed("a certificate"))?;
    let write = |name: &str, text: String| {
        std::fs::write(root.join(name), text).map_err(TaskError::io("write a certificate"))
    };
    write("cert.pem", made.cert.pem())?;
    write("key.pem", made.signing_key.serialize_pem())
}

/// Makes a folder for files, and an address for its server.
fn place(root: &Path, name: &str) -> Result<(PathBuf, SocketAddr)> {
    let files = root.join(name);
    std::fs::create_dir(&files).map_err(TaskError::io("make a folder"))?;
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port()?);
    Ok((files, address))
}

/// nginx with a process for each processor, as Debian builds it. A body goes to a file in a folder beside the others, and is
/// renamed.
fn start_nginx(program: &Path, root: &Path) -> Result<DavPeerServer> {
    let (files, address) = place(root, "nginx")?;
    let (files_shown, root_shown) = (files.display(), root.display());
    // Started by root, its workers would be another user, who may not enter a folder of root's. Else the line has no effect.
    let text = format!(
        "daemon off; user root root; worker_processes auto; pid {root_shown}/nginx.pid;\n\
error_log /dev/null; events {{ worker_connections 4096; }}\n\
http {{ access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000000;\n\
client_max_body_size 0; client_body_temp_path {root_shown}/n1; proxy_temp_path {root_shown}/n2;\n\
fastcgi_temp_path {root_shown}/n3; uwsgi_temp_path {root_shown}/n4; scgi_temp_path {root_shown}/n5;\n\
server {{ listen {address} ssl; ssl_protocols TLSv1.3; ssl_certificate {root_shown}/cert.pem;\n\
ssl_certificate_key {root_shown}/key.pem; root {files_shown};\n\
location / {{ dav_methods PUT DELETE MKCOL COPY MOVE; }} }} }}\n"
    );
    let config = root.join("nginx.conf");
    std::fs::write(&config, text).map_err(TaskError::io("write a configuration"))?;
    let mut command = Command::new(program);
    // Before it reads its configuration, it would open the log of its package.
    command.arg("-c").arg(config).arg("-e").arg("/dev/null");
    let process = PeerProcess::start(command, address)?;
    Ok(DavPeerServer { process, files })
}

fn start_rclone(program: &Path, root: &Path) -> Result<DavPeerServer> {
    let (files, address) = place(root, "rclone")?;
    let mut command = Command::new(program);
    command.args(["serve", "webdav"]).arg(&files);
    command.args(["--addr", &address.to_string(), "--cert"]);
    command.arg(root.join("cert.pem")).arg("--key");
    command.arg(root.join("key.pem")).arg("--config");
    // Without a file it takes its defaults. Its cache is not to lie in the user's home.
    command.arg(root.join("rclone.conf")).env("HOME", root);
    let process = PeerProcess::start(command, address)?;
    Ok(DavPeerServer { process, files })
}
