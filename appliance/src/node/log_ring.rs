//! The records that the log keeps, and which of them give way to newer ones.
//!
//! Clients, servers and scripts cause records. If the oldest record gave way, the log would soon
//! have only the records of one client that causes them without an end: a rate bounds what comes in
//! minute, and not what is left after an hour. So the payer that has most gives way, and half of
//! the bytes are for what the node says of itself. Of the other half, one half is for clients
//! without an identity, and one for the rest, as a client may have many networks.
//!
//! What an identity did (`by=`) is a record of the node. One that may make tokens can act under as
//! many names as it likes. So of the node's records, the place in the code that has most gives
//! way, and of its records those of the identity that has most there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
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
/// Bytes of the other half that clients without an identity leave to others, and others to them.
const NETWORK_BYTES: usize = (RING_BYTES_MAX - OWN_BYTES) / 2;
/// Maximum number of records in the ring: each takes the size of its type, and its text.
const RECORDS_MAX: usize = RING_BYTES_MAX / size_of::<LogRecord>();
/// Maximum number of bytes that are moved in memory, a few microseconds, when a record gives way.
/// All else costs steps in proportion to the logarithm of the number of payers, at most.
const MOVED_BYTES_MAX: usize = 96 << 10;
// `VecDeque::remove` moves the shorter side of the queue.
const _: () = assert!(RECORDS_MAX / 2 * size_of::<NumberedRecord>() <= MOVED_BYTES_MAX);

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
/// The field that names the identity that made a change. What identities did is a record of the node.
const BY_FIELD: &str = "by";
/// The field with the start of a client's key. A client through a relay has no address.
const KEY_FIELD: &str = "key8";
/// The namespace of promoted operations, each of which has another author.
const PROMOTED: &str = "js/";
/// The text of an absent value.
const NOTHING: &str = "-";
/// Stands between a site and a network in it.
pub(super) const SITE_END: char = ' ';

/// Whose share of the ring a record takes, by a hash of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RecordPayer {
    /// A place in the node's own code.
    Node(u64),
    /// A place in the node's own code, and the identity that caused what it says, or the key of a client without an
    /// address. Keys cost nothing, so that all of them have the share of one place.
    Author { callsite: u64, by: u64 },
    /// The site of a client without an identity.
    Site(u64),
    /// An identity, a server, or a place in the code of a library.
    Other(u64),
}

impl RecordPayer {
    /// The payer of an event's record.
    pub(super) fn from_event(event: &Event<'_>, hashes: &RandomState) -> Self {
        let metadata = event.metadata();
        let fields = PayerFields::read(event, &PAYER_FIELDS);
        let callsite = hashes.hash_one(metadata.callsite());
        if let Some(by) = fields.author {
            let by = hashes.hash_one(by);
            return Self::Author { callsite, by };
        }
        match fields.found {
            Some((ADDRESS_FIELD, text)) => Self::Site(hashes.hash_one(site(&text))),
            Some((OPERATION_FIELD, text)) => Self::Other(hashes.hash_one(namespace(text))),
            Some((_, text)) => Self::Other(hashes.hash_one(text)),
            // What a library says is about what a client or a server sent.
            None if !metadata.target().starts_with("alknet") => Self::Other(callsite),
            None => match fields.key {
                Some(key) => Self::Author {
                    callsite,
                    by: hashes.hash_one(key),
                },
                None => Self::Node(callsite),
            },
        }
    }
}

/// The site of the client that caused an event, [`SITE_END`], and the client's network. Clients without an address have
/// an empty site together, in which each has its key in the place of a network.
pub(super) fn site_and_network(event: &Event<'_>) -> String {
    let fields = PayerFields::read(event, &[ADDRESS_FIELD]);
    let Some((_, address)) = fields.found else {
        let key = fields.key.unwrap_or_default();
        return format!("{SITE_END}{key}");
    };
    match network(&address) {
        Some(network) => format!("{}{SITE_END}{network}", network.site()),
        None => address,
    }
}

/// Finds the first of these fields that an event has.
struct PayerFields {
    names: &'static [&'static str],
    rank: usize,
    /// The name and the text of the field.
    found: Option<(&'static str, String)>,
    /// The identity that caused the event, if the event is about what an identity did.
    author: Option<String>,
    /// The start of a client's key.
    key: Option<String>,
}

impl PayerFields {
    fn read(event: &Event<'_>, names: &'static [&'static str]) -> Self {
        let mut found = Self {
            names,
            rank: names.len(),
            found: None,
            author: None,
            key: None,
        };
        event.record(&mut found);
        found
    }

    fn take(&mut self, name: &str, text: impl FnOnce() -> String) {
        if name == BY_FIELD {
            self.author = Some(text());
            return;
        }
        if name == KEY_FIELD {
            self.key = Some(text());
            return;
        }
        let known = self.names.iter().position(|known| *known == name);
        let Some(rank) = known.filter(|rank| *rank < self.rank) else {
            return;
        };
        let text = text();
        if !text.is_empty() && text != NOTHING {
            (self.rank, self.found) = (rank, Some((self.names[rank], text)));
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

/// The network of an address: one client may have all its addresses. `None` for what is no address of IP.
fn network(address: &str) -> Option<NetworkPrefix> {
    let ip = address.parse::<SocketAddr>().map(|address| address.ip());
    let ip = ip.or_else(|_| address.parse::<IpAddr>()).ok()?;
    Some(NetworkPrefix::from_ip(ip))
}

/// The site of an address: one client may have all its networks.
fn site(address: &str) -> String {
    network(address).map_or_else(|| address.to_owned(), |it| it.site().to_string())
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
    queue: VecDeque<NumberedRecord>,
    payers: HashMap<RecordPayer, PayerRecords>,
    /// The places in the node's own code.
    node: PayerWeights<u64>,
    /// Of each of these places, what it says of itself and of each identity.
    callsites: HashMap<u64, PayerWeights<RecordPayer>>,
    /// Clients without an identity.
    sites: PayerWeights<RecordPayer>,
    /// All others.
    others: PayerWeights<RecordPayer>,
    /// The number that the next record gets.
    next: u64,
}

struct NumberedRecord {
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

impl PayerRecords {
    /// `None` if it has no records.
    fn weight(&self) -> Option<PayerWeight> {
        let oldest = self.numbers.front()?;
        Some((self.bytes, Reverse(*oldest)))
    }
}

/// What decides between payers: the bytes of their records, and of two that have as much the number
/// of the oldest record. The greatest gives way.
type PayerWeight = (usize, Reverse<u64>);

/// Payers in the order of their weights, so that no record costs a look at each payer.
struct PayerWeights<K> {
    bytes: usize,
    by_weight: BTreeMap<PayerWeight, K>,
}

impl<K> Default for PayerWeights<K> {
    fn default() -> Self {
        Self {
            bytes: 0,
            by_weight: BTreeMap::new(),
        }
    }
}

impl<K: Copy> PayerWeights<K> {
    /// Replaces a payer's weight. `None` for a payer without records.
    fn replace(&mut self, payer: K, old: Option<PayerWeight>, new: Option<PayerWeight>) {
        if let Some(old) = old {
            self.by_weight.remove(&old);
            self.bytes -= old.0;
        }
        if let Some(new) = new {
            self.by_weight.insert(new, payer);
            self.bytes += new.0;
        }
    }

    fn heaviest(&self) -> Option<K> {
        self.by_weight.last_key_value().map(|(_, payer)| *payer)
    }

    /// The weight of all payers at `callsite` together. `None` if it has no records.
    fn of_callsite(&self, callsite: u64) -> Option<PayerWeight> {
        // Of two places that have as much, either may give way, and no two have one hash.
        (self.bytes > 0).then_some((self.bytes, Reverse(callsite)))
    }
}

impl LogRecords {
    /// Adds a record. Beyond [`RING_BYTES_MAX`], a payer that has most loses its oldest record. While
    /// the node's own records have less than half of the bytes, it is one of the others: of clients
    /// without an identity while these have more than [`NETWORK_BYTES`], and otherwise of the rest.
    pub(super) fn push(&mut self, record: LogRecord, payer: RecordPayer) {
        let (number, cost) = (self.next, cost(&record));
        self.next += 1;
        let records = self.payers.entry(payer).or_default();
        let old = records.weight();
        records.bytes += cost;
        records.numbers.push_back(number);
        let new = records.weight();
        self.weigh(payer, old, new);
        let record = Arc::new(record);
        self.queue.push_back(NumberedRecord { number, record });
        while self.bytes() > RING_BYTES_MAX && self.drop_one().is_some() {}
    }

    /// Replaces the weight of a payer, and of its place in the node's own code.
    fn weigh(&mut self, payer: RecordPayer, old: Option<PayerWeight>, new: Option<PayerWeight>) {
        let callsite = match payer {
            RecordPayer::Site(_) => return self.sites.replace(payer, old, new),
            RecordPayer::Other(_) => return self.others.replace(payer, old, new),
            RecordPayer::Node(callsite) | RecordPayer::Author { callsite, .. } => callsite,
        };
        let at_callsite = self.callsites.entry(callsite).or_default();
        let old_callsite = at_callsite.of_callsite(callsite);
        at_callsite.replace(payer, old, new);
        let new_callsite = at_callsite.of_callsite(callsite);
        self.node.replace(callsite, old_callsite, new_callsite);
        if new_callsite.is_none() {
            self.callsites.remove(&callsite);
        }
    }

    /// The payer whose oldest record gives way.
    fn next_to_lose(&self) -> Option<RecordPayer> {
        if self.sites.bytes + self.others.bytes <= RING_BYTES_MAX - OWN_BYTES {
            let callsite = self.node.heaviest()?;
            return self.callsites.get(&callsite)?.heaviest();
        }
        match self.sites.bytes > NETWORK_BYTES {
            true => self.sites.heaviest(),
            false => self.others.heaviest(),
        }
    }

    /// Drops the record that gives way.
    fn drop_one(&mut self) -> Option<()> {
        let payer = self.next_to_lose()?;
        let records = self.payers.get_mut(&payer)?;
        let old = records.weight();
        let number = records.numbers.pop_front()?;
        let at = self.queue.partition_point(|kept| kept.number < number);
        let cost = cost(&self.queue.remove(at)?.record);
        records.bytes -= cost;
        let new = records.weight();
        if new.is_none() {
            self.payers.remove(&payer);
        }
        self.weigh(payer, old, new);
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
        self.node.bytes + self.sites.bytes + self.others.bytes
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
    use std::sync::Mutex;

    use alknet_core::config::{ChangedIds, ConfigApplyResult, ConfigSource, ConfigWarning};
    use tracing::Subscriber;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::super::reload::audit;
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
        for callsite in 0..own {
            records.push(record(&format!("{callsite} {long}")), RecordPayer::Node(1));
        }
        for payer in 0..10 * FLOOD as u64 {
            records.push(record(&long), RecordPayer::Other(payer));
        }
        let kept = (0..own).filter(|callsite| has(&records, &format!("{callsite} {long}")));
        assert_eq!(kept.count(), own);
        // A place in the code that says too much displaces itself.
        for _ in 0..FLOOD {
            records.push(record(&long), RecordPayer::Node(2));
        }
        records.push(record("later"), RecordPayer::Node(3));
        let kept = (0..own).filter(|callsite| has(&records, &format!("{callsite} {long}")));
        assert!(kept.count() >= own / 3);
        assert!(has(&records, "later") && records.bytes() <= RING_BYTES_MAX);
        let of_payers: usize = records.payers.values().map(|payer| payer.bytes).sum();
        assert_eq!(of_payers, records.bytes());
    }

    #[test]
    fn addresses_of_one_network_are_one_payer() {
        let one = site("192.0.2.7:51123");
        assert_eq!(one, site("192.0.2.200"));
        assert_ne!(one, site("192.0.3.7:51123"));
        assert_eq!(site("[2001:db8::1]:1"), site("[2001:db8:0:ff::2]:9"));
        assert_eq!(network("[2001:db8::1]:1"), network("[2001:db8:0:ff::2]:9"));
        assert_eq!(site("[2001:db8::1]:1"), site("[2001:db8:0:100::2]:9"));
        assert_ne!(site("[2001:db8::1]:1"), site("[2001:db8:1::2]:9"));
        assert_eq!(namespace("forge/a".to_owned()), "forge");
        assert_eq!(namespace("js/a".to_owned()), "js/a");
    }

    /// Keeps the payer of each event.
    #[derive(Clone, Default)]
    struct PayerLayer {
        payers: Arc<Mutex<Vec<RecordPayer>>>,
        hashes: RandomState,
    }

    impl<S: Subscriber> Layer<S> for PayerLayer {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let payer = RecordPayer::from_event(event, &self.hashes);
            self.payers.lock().expect("no panic").push(payer);
        }
    }

    /// The payers of the events that `causes` makes, in their order.
    fn payers(causes: impl FnOnce()) -> Vec<RecordPayer> {
        let layer = PayerLayer::default();
        let subscriber = tracing_subscriber::registry().with(layer.clone());
        tracing::subscriber::with_default(subscriber, causes);
        std::mem::take(&mut *layer.payers.lock().expect("no panic"))
    }

    /// A full ring, all of it from one place in the node's code.
    fn full_ring() -> LogRecords {
        let mut records = LogRecords::default();
        for _ in 0..FLOOD {
            records.push(record(&"x".repeat(4 << 10)), RecordPayer::Node(0));
        }
        records
    }

    /// Adds 50 short records.
    fn push_fifty(records: &mut LogRecords, who: &str, payer: RecordPayer) {
        for n in 0..50 {
            let text = format!("{who} {n} {}", "x".repeat(200));
            records.push(record(&text), payer);
        }
    }

    /// How many of these records the ring has.
    fn count(records: &LogRecords, who: &str) -> usize {
        let start = format!("{who} ");
        let kept = records.queue.iter();
        kept.filter(|kept| kept.record.message.starts_with(&start))
            .count()
    }

    /// One client has all 256 networks of an IPv6 /48.
    #[test]
    fn a_site_of_many_networks_displaces_only_its_own_records() {
        let request = |who: &str, addr: &str| tracing::info!(addr = %addr, who, "http.request");
        let join = |addr: &str| tracing::info!(addr = %addr, code = "EXPIRED", "enrol.refused");
        let payers = payers(|| {
            request("-", "192.0.2.7:51123");
            join("192.0.2.7:51124");
            request("ada", "[2001:db8:0:100::9]:51123");
            for n in 0..256 {
                request("-", &format!("[2001:db8:0:{n:x}00::1]:51123"));
                join(&format!("[2001:db8:0:{n:x}00::1]:51124"));
            }
        });
        let [neighbour, guess, ada, networks @ ..] = payers.as_slice() else {
            panic!("{payers:?}");
        };
        assert_eq!(networks.len(), 512);
        assert_eq!(neighbour, guess, "a client has one share of all its lines");
        let mut records = full_ring();
        // More than each network of the site has in the end, so that a share for each network would not do.
        push_fifty(&mut records, "neighbour", *neighbour);
        push_fifty(&mut records, "ada", *ada);
        let long = "x".repeat(4 << 10);
        for payer in networks.iter().cycle().take(10 * FLOOD) {
            records.push(record(&long), *payer);
        }
        assert_eq!(count(&records, "neighbour"), 50);
        assert_eq!(count(&records, "ada"), 50);
    }

    #[test]
    fn many_sites_and_many_identities_leave_each_other_a_quarter() {
        let mut records = full_ring();
        push_fifty(&mut records, "ada", RecordPayer::Other(0));
        let long = "x".repeat(4 << 10);
        for site in 0..10 * FLOOD as u64 {
            records.push(record(&long), RecordPayer::Site(site));
        }
        assert_eq!(count(&records, "ada"), 50);
        assert!(records.sites.bytes > NETWORK_BYTES);
        for identity in 0..10 * FLOOD as u64 {
            records.push(record(&long), RecordPayer::Other(identity));
        }
        let of_sites = records.sites.bytes;
        assert!(of_sites > NETWORK_BYTES - (8 << 10), "{of_sites} bytes");
    }

    #[test]
    fn what_one_relayed_client_tries_displaces_no_record_of_another() {
        displaces_no_record_of_another(|key8| {
            tracing::info!(key8, addr = None::<&str>, "enrol.refused");
        });
    }

    /// A client has as many keys as it likes.
    #[test]
    fn relayed_clients_without_number_displace_no_record_of_an_address() {
        let payers = payers(|| {
            tracing::info!(addr = "192.0.2.7:51124", "enrol.refused");
            for n in 0..40 * FLOOD {
                let key8 = format!("{n:08}");
                tracing::info!(key8, addr = None::<&str>, "enrol.refused");
            }
        });
        let (neighbour, relayed) = payers.split_first().expect("events");
        let mut records = full_ring();
        push_fifty(&mut records, "by an address", *neighbour);
        for (n, client) in relayed.iter().enumerate() {
            records.push(record(&format!("relayed {n}")), *client);
        }
        assert_eq!(count(&records, "by an address"), 50);
    }

    /// The identity repeats one action, such as making and revoking tokens, or applying one document and another.
    #[test]
    fn what_one_identity_does_displaces_no_record_of_another() {
        displaces_no_record_of_another(|by| tracing::info!(by, "token.make"));
        displaces_no_record_of_another(|by| {
            let source = ConfigSource::Operation(by.to_owned());
            audit(&source, &applied());
        });
    }

    #[test]
    fn each_record_of_a_change_names_its_author() {
        let payers = payers(|| {
            let mut applied = applied();
            let [id, what] = ["listen", "odd"].map(str::to_owned);
            applied.warnings.push(ConfigWarning { id, what });
            audit(&ConfigSource::Operation("ada".to_owned()), &applied);
        });
        let is_author = |payer: &RecordPayer| matches!(payer, RecordPayer::Author { .. });
        assert_eq!(payers.iter().filter(|it| is_author(it)).count(), 2);
    }

    fn applied() -> ConfigApplyResult {
        ConfigApplyResult {
            generation: 2,
            dry_run: false,
            changed: true,
            restart_required: Vec::new(),
            warnings: Vec::new(),
            peers: ChangedIds::default(),
        }
    }

    fn displaces_no_record_of_another(acts: fn(&str)) {
        let payers = payers(|| {
            acts("ada");
            acts("mallory");
        });
        let [ada, mallory] = payers.as_slice() else {
            panic!("{payers:?}");
        };
        let mut records = full_ring();
        push_fifty(&mut records, "node", RecordPayer::Node(1));
        push_fifty(&mut records, "ada", *ada);
        for n in 0..40 * FLOOD {
            records.push(record(&format!("mallory {n}")), *mallory);
        }
        assert_eq!(count(&records, "node"), 50);
        assert_eq!(count(&records, "ada"), 50);
    }

    /// Each token is an identity, and may make the next one.
    #[test]
    fn identities_without_number_displace_only_records_of_what_they_do() {
        let make = |by: &str| tracing::info!(by, "token.make");
        let payers = payers(|| {
            for n in 0..40 * FLOOD {
                make(&format!("token {n}"));
            }
            tracing::info!(by = "ada", source = "operation by ada", "config.apply");
        });
        let (ada, tokens) = payers.split_last().expect("events");
        let mut records = full_ring();
        push_fifty(&mut records, "node", RecordPayer::Node(1));
        push_fifty(&mut records, "ada", *ada);
        for (n, token) in tokens.iter().enumerate() {
            records.push(record(&format!("token {n}")), *token);
        }
        assert_eq!(count(&records, "node"), 50);
        assert_eq!(count(&records, "ada"), 50);
        assert!(records.bytes() <= RING_BYTES_MAX);
        let of_payers: usize = records.payers.values().map(|payer| payer.bytes).sum();
        assert_eq!(of_payers, records.bytes());
        assert!(records.len() <= RECORDS_MAX);
    }
}
