//! First packets of QUIC connections (RFC 9000 section 17.2.2, RFC 9001 section 5.2). Everything in
//! them is valid, except their source address.

use std::net::Ipv4Addr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::quic::{ClientConnection, Keys, Suite, Version};
use rustls::{ClientConfig, RootCertStore, Side};

/// Bytes of a datagram with a first packet (RFC 9000 section 14.1).
const DATAGRAM_BYTES: usize = 1200;
/// Long header, fixed bit, type Initial, packet number of four bytes.
const FIRST_BYTE: u8 = 0xc3;
const ID_BYTES: usize = 8;
const NUMBER_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
/// Everything before the packet number: first byte, version, both IDs, no token, length.
const HEADER_BYTES: usize = 1 + 4 + 1 + ID_BYTES + 1 + ID_BYTES + 1 + 2;
const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// Different clients whose ClientHellos are sent repeatedly, with other IDs each time.
const CLIENTS: usize = 16;

/// Makes packets.
pub(crate) struct InitialPackets {
    suite: Suite,
    /// ClientHellos, each with the source ID that it contains.
    hellos: Vec<(Vec<u8>, [u8; ID_BYTES])>,
    random: PacketRng,
}

impl InitialPackets {
    /// For the protocol `alpn`.
    pub(crate) fn new(alpn: &[u8]) -> Self {
        let mut provider = (*alknet_tls::provider()).clone();
        // Without the post-quantum key share, a ClientHello fits into one packet, so that each
        // packet makes the server do all its work.
        provider
            .kx_groups
            .retain(|group| group.name() == rustls::NamedGroup::X25519);
        let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
        let suite = suite.tls13().and_then(|suite| suite.quic_suite());
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let config = Arc::new(config);
        let mut random = PacketRng(0x9e37_79b9_7f4a_7c15);
        let hellos = (0..CLIENTS).map(|_| hello(&config, random.id())).collect();
        Self {
            suite: suite.expect("every QUIC client has it"),
            hellos,
            random,
        }
    }

    /// An IPv4 packet from a random address of 10.0.0.0/8 to `port` of `to`, with a whole
    /// ClientHello.
    pub(crate) fn right(&mut self, to: Ipv4Addr, port: u16) -> Vec<u8> {
        let datagram = self.datagram();
        self.packet(to, port, &datagram)
    }

    /// A datagram with a whole ClientHello.
    pub(crate) fn datagram(&mut self) -> Vec<u8> {
        let destination = self.random.id();
        let client = self.random.below(CLIENTS);
        let (hello, source) = &self.hellos[client];
        self.protected(destination, *source, hello)
    }

    /// A packet like those of [`right`](Self::right), but damaged, truncated, or noise.
    pub(crate) fn wrong_packet(&mut self, to: Ipv4Addr, port: u16) -> Vec<u8> {
        let mut packet = self.right(to, port);
        let start = IP_BYTES + UDP_BYTES;
        match self.random.below(3) {
            0 => packet[start + HEADER_BYTES + 100] ^= 1,
            1 => {
                let datagram = packet[start..start + DATAGRAM_BYTES / 2].to_vec();
                packet = self.packet(to, port, &datagram);
            }
            _ => {
                for byte in &mut packet[start..] {
                    *byte = self.random.next() as u8;
                }
            }
        }
        packet
    }

    fn protected(
        &self,
        destination: [u8; ID_BYTES],
        source: [u8; ID_BYTES],
        hello: &[u8],
    ) -> Vec<u8> {
        let mut datagram = vec![FIRST_BYTE, 0, 0, 0, 1, ID_BYTES as u8];
        datagram.extend(destination);
        datagram.push(ID_BYTES as u8);
        datagram.extend(source);
        // No token, then the length of the rest, as a two-byte integer.
        datagram.push(0);
        let rest = (DATAGRAM_BYTES - HEADER_BYTES) as u16;
        datagram.extend((rest | 0x4000).to_be_bytes());
        datagram.extend([0; NUMBER_BYTES]);
        let header = datagram.clone();
        // CRYPTO frame at offset 0, then PADDING.
        datagram.extend([6, 0]);
        datagram.extend((hello.len() as u16 | 0x4000).to_be_bytes());
        datagram.extend(hello);
        datagram.resize(DATAGRAM_BYTES - TAG_BYTES, 0);
        let Keys { local, .. } = self.suite.keys(&destination, Side::Client, Version::V1);
        let payload = &mut datagram[header.len()..];
        let tag = local.packet.encrypt_in_place(0, &header, payload);
        datagram.extend(tag.expect("short enough").as_ref());
        let sample = header.len()..header.len() + local.header.sample_len();
        let sample = datagram[sample].to_vec();
        let (first, others) = datagram.split_at_mut(1);
        let number = &mut others[HEADER_BYTES - 1..HEADER_BYTES - 1 + NUMBER_BYTES];
        let hidden = local
            .header
            .encrypt_in_place(&sample, &mut first[0], number);
        hidden.expect("a sample of the right length");
        datagram
    }

    /// Headers of IPv4, whose checksum the kernel fills in, and of UDP, whose checksum is optional
    /// there.
    fn packet(&mut self, to: Ipv4Addr, port: u16, datagram: &[u8]) -> Vec<u8> {
        let from = Ipv4Addr::from(0x0a00_0000 | (self.random.next() as u32 & 0x00ff_ffff));
        let from_port = 1024 | self.random.next() as u16;
        let mut packet = vec![0x45, 0];
        packet.extend(((IP_BYTES + UDP_BYTES + datagram.len()) as u16).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend(from_port.to_be_bytes());
        packet.extend(port.to_be_bytes());
        packet.extend(((UDP_BYTES + datagram.len()) as u16).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(datagram);
        packet
    }
}

/// A client's first message, with transport parameters that contain its ID (RFC 9000 section 18.2).
fn hello(config: &Arc<ClientConfig>, source: [u8; ID_BYTES]) -> (Vec<u8>, [u8; ID_BYTES]) {
    let mut parameters = vec![0x0f, ID_BYTES as u8];
    parameters.extend(source);
    let name = ServerName::try_from("node.test").expect("a name");
    let client = ClientConnection::new(Arc::clone(config), Version::V1, name, parameters);
    let mut hello = Vec::new();
    client.expect("a client").write_hs(&mut hello);
    (hello, source)
}

/// xorshift64*, so that the packets are the same each time.
struct PacketRng(u64);

impl PacketRng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() >> 33) as usize % most
    }

    fn id(&mut self) -> [u8; ID_BYTES] {
        self.next().to_be_bytes()
    }
}
