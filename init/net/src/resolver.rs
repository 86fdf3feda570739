//! The resolver's configuration file.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// Maximum number of name servers that a resolver reads (MAXNS of resolv.conf(5)). Further ones are
/// only shown.
const SERVERS_MAX: usize = 3;

/// A name server. A link-local one has a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NameServer {
    pub(crate) address: IpAddr,
    /// Index and name of the card of a link-local address.
    pub(crate) scope: Option<(u32, String)>,
}

impl NameServer {
    pub(crate) fn socket(&self) -> SocketAddr {
        let mut socket = SocketAddr::new(self.address, 53);
        if let (SocketAddr::V6(v6), Some((index, _))) = (&mut socket, &self.scope) {
            v6.set_scope_id(*index);
        }
        socket
    }
}

/// Content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub(crate) servers: Vec<NameServer>,
    pub(crate) search: Vec<String>,
}

impl Resolver {
    pub(crate) fn text(&self) -> String {
        let mut text = String::from("# Written by alknet; changes are lost.\n");
        for server in self.servers.iter().take(SERVERS_MAX) {
            let scope = server
                .scope
                .as_ref()
                .map(|s| format!("%{}", s.1))
                .unwrap_or_default();
            text += &format!("nameserver {}{scope}\n", server.address);
        }
        if !self.search.is_empty() {
            text += &format!("search {}\n", self.search.join(" "));
        }
        text
    }

    /// Replaces the file in one step: a reader gets either the old or the new file as a whole.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        // There is no fsync: the file is in memory, and each start writes it.
        fs::write(&new, self.text())?;
        fs::rename(&new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(address: &str) -> NameServer {
        let address: IpAddr = address.parse().expect("valid");
        let scope = crate::plan::is_link_local(address).then(|| (4, "eth0".to_owned()));
        NameServer { address, scope }
    }

    #[test]
    fn three_servers_and_the_domains_are_written() {
        let resolver = Resolver {
            servers: ["192.0.2.1", "fe80::1", "2001:db8::1", "192.0.2.4"]
                .map(server)
                .to_vec(),
            search: vec!["lan".to_owned(), "example.org".to_owned()],
        };
        let expected = "nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\n\
                        search lan example.org\n";
        assert_eq!(
            resolver.text().split_once('\n').map(|t| t.1),
            Some(expected)
        );
        assert_eq!(resolver.servers[1].socket().to_string(), "[fe80::1%4]:53");
    }

    #[test]
    fn the_file_is_replaced_and_no_other_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resolv.conf");
        Resolver::default().write(&path).expect("written");
        let resolver = Resolver {
            servers: vec![server("192.0.2.1")],
            ..Resolver::default()
        };
        resolver.write(&path).expect("written");
        assert_eq!(
            fs::read_to_string(&path).expect("readable"),
            resolver.text()
        );
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1);
    }
}
