//! Finds the addresses of a time server. It asks the network's name servers directly: the C
//! library's resolver reads its file once and blocks a thread.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{net::UdpSocket, time::timeout};

use super::sntp;
use crate::{
    NetError,
    dns::{DnsRecordType, answer, query, valid_name},
    entropy::secret_u64,
};

/// Maximum time for a name server to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Maximum length of an answer over UDP without extensions, RFC 1035 §2.3.4.
const ANSWER_BYTES_MAX: usize = 512;
/// Maximum number of addresses that are tried for one name.
const ADDRESSES_MAX: usize = 4;
/// Maximum number of name servers that are asked for one name.
const RESOLVERS_MAX: usize = 3;

/// Addresses of `server`: `192.0.2.1`, `2001:db8::1`, `time.example`, each with `:port` if the port
/// is not 123 (`[2001:db8::1]:1123`).
pub(super) async fn lookup(
    server: &str,
    resolvers: &[SocketAddr],
) -> Result<Vec<SocketAddr>, NetError> {
    if let Ok(socket) = server.parse::<SocketAddr>() {
        return Ok(vec![socket]);
    }
    if let Ok(address) = server.parse::<IpAddr>() {
        return Ok(vec![(address, sntp::PORT).into()]);
    }
    let (name, port) = match server.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok()),
        None => (server, Some(sntp::PORT)),
    };
    let failed = |reason: &str| NetError::Lookup {
        name: server.to_owned(),
        reason: reason.to_owned(),
    };
    let (Some(name), Some(port)) = (valid_name(name), port) else {
        return Err(failed("it is neither an address nor a host name"));
    };
    let mut reason = "the network offers no name server".to_owned();
    for resolver in resolvers.iter().take(RESOLVERS_MAX) {
        match addresses(&name, *resolver).await {
            Ok(found) if !found.is_empty() => {
                return Ok(found.into_iter().map(|a| (a, port).into()).collect());
            }
            Ok(_) => reason = format!("{resolver} knows no address"),
            Err(e) => reason = format!("{resolver}: {e}"),
        }
    }
    Err(failed(&reason))
}

/// Addresses of both families, alternating.
async fn addresses(name: &str, resolver: SocketAddr) -> io::Result<Vec<IpAddr>> {
    // Both queries run at once: a resolver that drops queries for AAAA would otherwise add its
    // timeout to each lookup.
    let (v4, v6) = tokio::join!(
        ask(name, resolver, DnsRecordType::V4),
        ask(name, resolver, DnsRecordType::V6)
    );
    let (v4, v6) = match (v4, v6) {
        // One family is enough: the network may not have the other.
        (Err(e), Err(_)) => return Err(e),
        (v4, v6) => (v4.unwrap_or_default(), v6.unwrap_or_default()),
    };
    let mut found = Vec::new();
    // The families alternate, so that one without a route does not use up all attempts.
    for n in 0..ADDRESSES_MAX {
        found.extend(v4.get(n));
        found.extend(v6.get(n));
    }
    found.truncate(ADDRESSES_MAX);
    Ok(found)
}

async fn ask(name: &str, resolver: SocketAddr, family: DnsRecordType) -> io::Result<Vec<IpAddr>> {
    let socket = connect(resolver).await?;
    // RFC 5452 §9.2: an attacker off the path would have to guess the id and the port.
    let id = secret_u64()? as u16;
    let question = query(id, name, family);
    socket.send(&question).await?;
    let mut buffer = [0; ANSWER_BYTES_MAX];
    let answered = async {
        // A forged or late datagram must not end the wait for the real answer.
        loop {
            let len = socket.recv(&mut buffer).await?;
            if let Some(found) = answer(&question, &buffer[..len], family) {
                return Ok(found);
            }
        }
    };
    timeout(PATIENCE, answered)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// A socket for one exchange only: its port is random, and only `peer` can answer.
pub(super) async fn connect(peer: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(peer).await?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(future)
    }

    #[test]
    fn addresses_need_no_name_server() {
        let found = |text: &str| run(lookup(text, &[])).map(|a| a[0].to_string()).ok();
        assert_eq!(found("192.0.2.1").as_deref(), Some("192.0.2.1:123"));
        assert_eq!(found("2001:db8::1").as_deref(), Some("[2001:db8::1]:123"));
        assert_eq!(found("192.0.2.1:1123").as_deref(), Some("192.0.2.1:1123"));
        assert_eq!(found("time.example"), None);
        assert_eq!(found("no name at all"), None);
        assert_eq!(found("host:99999"), None);
    }

    #[test]
    fn a_name_is_asked_of_the_next_server_when_the_first_is_closed() {
        run(async {
            let closed = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let closed = closed.local_addr().expect("an address");
            let server = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let address = server.local_addr().expect("an address");
            let serve = tokio::spawn(async move {
                let mut buffer = [0; 512];
                loop {
                    let (len, from) = server.recv_from(&mut buffer).await.expect("a question");
                    let v4 = buffer[len - 3] == 1;
                    let mut reply = buffer[..len].to_vec();
                    reply[2] |= 0x80;
                    if v4 {
                        reply[7] = 1;
                        reply.extend(
                            b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x09\x00\x04\xc0\x00\x02\x07",
                        );
                    }
                    server.send_to(&reply, from).await.expect("sent");
                }
            });
            let found = lookup("time.example:1123", &[closed, address])
                .await
                .expect("found");
            assert_eq!(found, ["192.0.2.7:1123".parse().expect("valid")]);
            serve.abort();
        });
    }
}
