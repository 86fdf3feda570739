//! The records that the log keeps, and which of them give way to newer ones.
//!
//! Clients, servers and scripts cause records. If the oldest record gave way, the log would soon
//! have only the records of one client that causes them without an end: a rate bounds what comes in
//! a minute, and not what is left after an hour. So the payer that has most gives way, and half of
//! the bytes are for what the node says of itself.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use alknet_core::NetworkPrefix;
use alknet_init::control::LogRecord;
use tracing::Event;
use tracing::field::{Field, Visit};

use super::log::RING_BYTES_MAX;

/// Bytes of the ring that only records of the node itself may take.
const OWN_BYTES: usize = RING_BYTES_MAX / 2;

/// The fields that name who caused a record, the most telling one first.
const PAYER_FIELDS: [&str; 7] = [
    "owner",
    "who",
    "peer",
    "identity",
    ADDRESS_FIELD,
    "import",
    OPERATION_FIELD,
];
/// The field with the address of a client.
const ADDRESS_FIELD: &str = "addr";
/// The field that names an operation.
const OPERATION_FIELD: &str = "operation";
/// The field that names an administrator. What administrators did is a record of the node.
const BY_FIELD: &str = "by";
/// The namespace of promoted operations, each of which has another author.
const PROMOTED: &str = "js/";
/// The text of an absent value.
const NOTHING: &str = "-";

/// Whose share of the ring a record takes, by a hash of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RecordPayer {
    /// A place in the node's own code.
    Node(u64),
    /// An identity, a network, a server, or a place in the code of a library.
    Other(u64),
}

impl RecordPayer {
    /// The payer of an event's record.
    pub(super) fn from_event(event: &Event<'_>, hashes: &RandomState) -> Self {
        let metadata = event.metadata();
        let fields = PayerFields::read(event, &PAYER_FIELDS);
        match fields.text {
            Some(text) if !fields.has_author => Self::Other(hashes.hash_one(text)),
            // What a library says is about what a client or a server sent.
            _ if !metadata.target().starts_with("alknet") => {
                Self::Other(hashes.hash_one(metadata.callsite()))
            }
            _ => Self::Node(hashes.hash_one(metadata.callsite())),
        }
    }

    const fn is_other(self) -> bool {
        matches!(self, Self::Other(_))
    }
}

/// The network of the client that caused an event. Empty if the event has no address.
pub(super) fn network_of(event: &Event<'_>) -> String {
    let fields = PayerFields::read(event, &[ADDRESS_FIELD]);
    fields.text.unwrap_or_default()
}

/// Finds the first of these fields that an event has.
struct PayerFields {
    names: &'static [&'static str],
    rank: usize,
    text: Option<String>,
    /// Whether an administrator caused the event.
    has_author: bool,
}

impl PayerFields {
    fn read(event: &Event<'_>, names: &'static [&'static str]) -> Self {
        let mut found = Self {
            names,
            rank: names.len(),
            text: None,
            has_author: false,
        };
        event.record(&mut found);
        found
    }

    fn take(&mut self, name: &str, text: impl FnOnce() -> String) {
        self.has_author |= name == BY_FIELD;
        let Some(rank) = self.names.iter().position(|known| *known == name) else {
            return;
        };
        if rank >= self.rank {
            return;
        }
        let text = match (name, text()) {
            (ADDRESS_FIELD, text) => network(&text),
            (OPERATION_FIELD, text) => namespace(text),
            (_, text) => text,
        };
        if !text.is_empty() && text != NOTHING {
            (self.rank, self.text) = (rank, Some(text));
        }
    }
}

impl Visit for PayerFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field.name(), || format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field.name(), || value.to_owned());
    }
}

/// The network of an address: a client may have each address of its own.
fn network(address: &str) -> String {
    let ip = address.parse::<SocketAddr>().map(|address| address.ip());
    match ip.or_else(|_| address.parse::<IpAddr>()) {
        Ok(ip) => NetworkPrefix::from_ip(ip).to_string(),
        Err(_) => address.to_owned(),
    }
}

/// The server of an operation: one server may have hundreds of operations.
fn namespace(operation: String) -> String {
    if operation.starts_with(PROMOTED) {
        return operation;
    }
    let namespace = operation.split('/').next().unwrap_or_default();
    namespace.to_owned()
}

/// The records of the ring. Each has a number, counted from the start of the node.
#[derive(Default)]
pub(super) struct LogRecords {
    /// By number. The numbers of dropped records are missing.
    queue: VecDeque<KeptRecord>,
    payers: HashMap<RecordPayer, PayerRecords>,
    bytes: usize,
    /// Bytes of records that others caused.
    others_bytes: usize,
    /// The number that the next record gets.
    next: u64,
}

struct KeptRecord {
    number: u64,
    record: Arc<LogRecord>,
}

/// The records of one payer.
#[derive(Default)]
struct PayerRecords {
    bytes: usize,
    /// Oldest first.
    numbers: VecDeque<u64>,
}

impl LogRecords {
    /// Adds a record. Beyond [`RING_BYTES_MAX`], the payer that has most loses its oldest record:
    /// one of the others while they have more than half of the bytes, and otherwise a place in the
    /// node's own code.
    pub(super) fn push(&mut self, record: LogRecord, payer: RecordPayer) {
        let (number, cost) = (self.next, cost(&record));
        self.next += 1;
        let records = self.payers.entry(payer).or_default();
        records.bytes += cost;
        records.numbers.push_back(number);
        self.bytes += cost;
        if payer.is_other() {
            self.others_bytes += cost;
        }
        let record = Arc::new(record);
        self.queue.push_back(KeptRecord { number, record });
        while self.bytes > RING_BYTES_MAX && self.drop_one().is_some() {}
    }

    /// Drops the record that gives way.
    fn drop_one(&mut self) -> Option<()> {
        let is_others_turn = self.others_bytes > RING_BYTES_MAX - OWN_BYTES;
        let may_lose = self
            .payers
            .iter()
            .filter(|(payer, _)| payer.is_other() == is_others_turn);
        // Of two payers that have as much, the one with the older record.
        let heaviest = may_lose
            .max_by_key(|(_, records)| (records.bytes, Reverse(records.numbers.front().copied())));
        let payer = *heaviest?.0;
        let records = self.payers.get_mut(&payer)?;
        let number = records.numbers.pop_front()?;
        let at = self.queue.partition_point(|kept| kept.number < number);
        let cost = cost(&self.queue.remove(at)?.record);
        records.bytes -= cost;
        if records.numbers.is_empty() {
            self.payers.remove(&payer);
        }
        self.bytes -= cost;
        if payer.is_other() {
            self.others_bytes -= cost;
        }
        Some(())
    }

    /// The number that the next record gets.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Number of records.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Bytes of all records.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The place of the first record with this number or a later one.
    pub(super) fn position(&self, number: u64) -> usize {
        self.queue.partition_point(|kept| kept.number < number)
    }

    /// The record at a place, with its number.
    pub(super) fn get(&self, at: usize) -> Option<(u64, &Arc<LogRecord>)> {
        let kept = self.queue.get(at)?;
        Some((kept.number, &kept.record))
    }
}

fn cost(record: &LogRecord) -> usize {
    record.message.len() + record.target.len() + size_of::<LogRecord>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> LogRecord {
        LogRecord {
            boot_ms: 1,
            time: None,
            level: "info".to_owned(),
            target: "test".to_owned(),
            message: message.to_owned(),
        }
    }

    fn has(records: &LogRecords, message: &str) -> bool {
        let mut kept = records.queue.iter();
        kept.any(|kept| kept.record.message == message)
    }

    /// More bytes than the ring has, in records of the longest kind.
    const FLOOD: usize = 2 * (RING_BYTES_MAX >> 12);

    #[test]
    fn a_payer_that_causes_most_displaces_only_its_own_records() {
        let mut records = LogRecords::default();
        records.push(record("of the node"), RecordPayer::Node(1));
        records.push(record("of another"), RecordPayer::Other(1));
        let long = "x".repeat(4 << 10);
        for _ in 0..FLOOD {
            records.push(record(&long), RecordPayer::Other(2));
        }
        assert!(has(&records, "of the node") && has(&records, "of another"));
        // All the rest is its own, as no other payer needs it.
        assert!(records.bytes() > RING_BYTES_MAX - (8 << 10));
        assert!(records.bytes() <= RING_BYTES_MAX);
    }

    #[test]
    fn many_payers_leave_half_to_the_node() {
        let mut records = LogRecords::default();
        let long = "x".repeat(4 << 10);
        let own = OWN_BYTES / (5 << 10);
        for place in 0..own {
            records.push(record(&format!("{place} {long}")), RecordPayer::Node(1));
        }
        for payer in 0..10 * FLOOD as u64 {
            records.push(record(&long), RecordPayer::Other(payer));
        }
        let kept = (0..own).filter(|place| has(&records, &format!("{place} {long}")));
        assert_eq!(kept.count(), own);
        // A place in the code that says too much displaces itself.
        for _ in 0..FLOOD {
            records.push(record(&long), RecordPayer::Node(2));
        }
        records.push(record("later"), RecordPayer::Node(3));
        let kept = (0..own).filter(|place| has(&records, &format!("{place} {long}")));
        assert!(kept.count() >= own / 3);
        assert!(has(&records, "later") && records.bytes() <= RING_BYTES_MAX);
        let of_payers: usize = records.payers.values().map(|payer| payer.bytes).sum();
        assert_eq!(of_payers, records.bytes());
    }

    #[test]
    fn addresses_of_one_network_are_one_payer() {
        let one = network("192.0.2.7:51123");
        assert_eq!(one, network("192.0.2.200"));
        assert_ne!(one, network("192.0.3.7:51123"));
        assert_eq!(network("[2001:db8::1]:1"), network("[2001:db8:0:ff::2]:9"));
        assert_eq!(namespace("forge/a".to_owned()), "forge");
        assert_eq!(namespace("js/a".to_owned()), "js/a");
    }
}
