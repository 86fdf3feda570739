//! Headers with something changed in them, by the thousand: nothing panics, memory keeps its bound,
//! and what is taken is taken by the stock reader too.

use alknet_tensor::{
    ContainerLimits, ContainerReader, ElementType, TensorError, TensorErrorCode, TensorKind,
    VerifyDepth, header_len, verify,
};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as StockDtype, TensorView as StockView};

use crate::common::{file, sample};
use crate::memory::{BESIDE, TIMES, most_held};

/// How many run with every test.
const COUNT: u64 = 40_000;
/// How many `ALKNET_SOAK=full` asks for.
const COUNT_FULL: u64 = 1_000_000;
/// Where the dice begin.
const SEED: u64 = 0x6d65_7461_7465_6e73;

/// Pieces that a parser may stumble over.
const PIECES: [&str; 36] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\\"",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "-1",
    "0",
    "1e3",
    "1.5",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "\"dtype\"",
    "\"shape\":[0]",
    "\"data_offsets\":[0,0]",
    "\"F4\"",
    "\"F6_E3M2\"",
    "\"U64\"",
    "\"BOOL\"",
    "\"Q8\"",
    "\"__metadata__\":{}",
    "\"metatensor\":\"1\"",
    "\"mt.index\"",
    "__pad__.0",
    ".__off__",
    "\\\"kind\\\":\\\"blob\\\"",
    "\\\"off\\\":7",
    " ",
];

/// What came of a campaign.
#[derive(Debug, Default)]
pub(crate) struct MutationTally {
    accepted: u64,
    refused: u64,
    /// Refused here, taken by the stock reader.
    stricter: u64,
    /// Most bytes held for each byte of a header.
    times: f64,
}

/// Small and even enough.
struct MutationRng(u64);

impl MutationRng {
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.throw() % end as u64) as usize
    }
}

/// Changes `count` headers, each once to four times.
pub(crate) fn campaign(count: u64, seed: u64) -> MutationTally {
    let files = [sample(), stock(), file(OPAQUE, 4), bare()];
    let mut dice = MutationRng(seed);
    let mut tally = MutationTally::default();
    for _ in 0..count {
        let file = &files[dice.below(files.len())];
        let mutant = mutate(file, &mut dice);
        judge(&mutant, &mut tally);
    }
    tally
}

const OPAQUE: &str = r#"{"a":{"dtype":"F2","shape":[7],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4],"more":{"x":[1,{"y":null}]}}}"#;

/// As the stock writer makes one.
fn stock() -> Vec<u8> {
    let data = [0_u8; 64];
    let view = |dtype, shape: &[usize], len: usize| {
        StockView::new(dtype, shape.to_vec(), &data[..len]).expect("it fits")
    };
    let tensors = [
        ("model.layers.0.weight", view(StockDtype::BF16, &[4, 4], 32)),
        ("model.layers.0.scale", view(StockDtype::F8_E8M0, &[4], 4)),
        ("packed", view(StockDtype::F4, &[4, 2], 4)),
        ("mask", view(StockDtype::BOOL, &[3], 3)),
        ("empty", view(StockDtype::F64, &[0], 0)),
    ];
    let metadata = [("format".to_owned(), "pt".to_owned())];
    safetensors::serialize(tensors, Some(metadata.into())).expect("it fits")
}

/// A small metatensor without hashes, where a change is not drowned by digits.
fn bare() -> Vec<u8> {
    let index = r##"{"tensors":{"b":{"kind":"blob","enc":"utf8"},"s":{"kind":"struct","def":"X","stride":4,"count":2,"fields":[{"path":"x","off":0,"type":"Uint16"},{"path":"y","off":2,"type":"String","len":2}]}},"order":["b","s"],"root":{"a":"#b"}}"##;
    let index = serde_json::Value::from(index);
    let header = format!(
        r#"{{"__metadata__":{{"metatensor":"1","mt.index":{index}}},"b.__off__":{{"dtype":"U64","shape":[3],"data_offsets":[0,24]}},"b":{{"dtype":"U8","shape":[0],"data_offsets":[24,24]}},"s":{{"dtype":"U8","shape":[2,4],"data_offsets":[24,32]}}}}"#
    );
    file(&header, 32)
}

/// The file with its header changed; the length follows, most of the time.
fn mutate(file: &[u8], dice: &mut MutationRng) -> Vec<u8> {
    let limits = ContainerLimits::safetensors();
    let len = header_len(file, file.len() as u64, &limits).expect("a good file") as usize;
    let mut header = file[8..8 + len].to_vec();
    for _ in 0..=dice.below(4) {
        change(&mut header, dice);
    }
    let mut mutant = (header.len() as u64).to_le_bytes().to_vec();
    if dice.below(32) == 0 {
        mutant[dice.below(8)] ^= 1 << dice.below(8);
    }
    mutant.extend(header);
    mutant.extend(&file[8 + len..]);
    match dice.below(64) {
        0 => mutant.truncate(dice.below(mutant.len())),
        1 => mutant.push(0),
        2 if len < file.len() - 8 => {
            let last = mutant.len() - 1 - dice.below(file.len() - 8 - len);
            mutant[last] ^= 1 << dice.below(8);
        }
        _ => {}
    }
    mutant
}

fn change(header: &mut Vec<u8>, dice: &mut MutationRng) {
    if header.is_empty() {
        return;
    }
    let at = dice.below(header.len());
    match dice.below(8) {
        0 => header[at] ^= 1 << dice.below(8),
        1 => header[at] = dice.throw() as u8,
        2 => {
            let piece = PIECES[dice.below(PIECES.len())];
            header.splice(at..at, piece.bytes());
        }
        3 => {
            let piece = PIECES[dice.below(PIECES.len())];
            let end = header.len().min(at + piece.len());
            header.splice(at..end, piece.bytes());
        }
        4 => {
            let end = header.len().min(at + 1 + dice.below(16));
            header.drain(at..end);
        }
        5 => {
            let end = header.len().min(at + 1 + dice.below(80));
            let again = header[at..end].to_vec();
            let to = dice.below(header.len());
            header.splice(to..to, again);
        }
        // Numbers are what most of the rules are about.
        _ => {
            let digits = |b: &u8| b.is_ascii_digit();
            if let Some(skip) = header[at..].iter().position(digits) {
                header[at + skip] = b'0' + dice.below(10) as u8;
            }
        }
    }
}

fn judge(file: &[u8], tally: &mut MutationTally) {
    let limits = ContainerLimits::safetensors();
    let header = header_len(file, file.len() as u64, &limits).unwrap_or(0);
    let (opened, most) = most_held(|| ContainerReader::open(file, &limits));
    let said = || String::from_utf8_lossy(file).into_owned();
    assert!(
        most <= TIMES * header as usize + BESIDE,
        "{most} bytes: {}",
        said()
    );
    tally.times = tally
        .times
        .max((most.saturating_sub(BESIDE)) as f64 / header.max(1) as f64);
    let stock = SafeTensors::deserialize(file);
    match opened {
        Ok(reader) => {
            tally.accepted += 1;
            let opaque = |entry: alknet_tensor::HeaderEntry<'_>| entry.dtype().known().is_none();
            if !reader.meta().entries().any(opaque) {
                let stock = stock.unwrap_or_else(|error| panic!("{error}: {}", said()));
                assert_eq!(stock.len(), reader.meta().entries().len());
            }
            read_everything(&reader);
        }
        Err(error) => {
            tally.refused += 1;
            if stock.is_ok() {
                tally.stricter += 1;
                excused(&error, &said());
            }
        }
    }
    // What the smaller limits take, the larger do.
    if ContainerReader::open(file, &ContainerLimits::default()).is_ok() {
        ContainerReader::open(file, &limits).expect("the larger limits take it");
    }
}

/// Why a file may be refused that the stock reader takes.
fn excused(error: &TensorError, file: &str) {
    let ours = match error.code() {
        // Keys that come twice, what is beyond every limit, what is not an object.
        TensorErrorCode::DupKey | TensorErrorCode::Limit | TensorErrorCode::Header => true,
        // What a file promises that calls itself a metatensor.
        TensorErrorCode::Json
        | TensorErrorCode::Layout
        | TensorErrorCode::Overflow
        | TensorErrorCode::Schema
        | TensorErrorCode::Version => file.contains("metatensor"),
        _ => false,
    };
    assert!(ours, "{error}: {file}");
}

/// Everything that can be asked of a file is answered, well or with an error.
fn read_everything(reader: &ContainerReader<&[u8]>) {
    for tensor in reader.meta().tensors() {
        let name = tensor.name();
        let view = reader.view(name).expect("its bytes are in memory");
        if matches!(view.dtype(), ElementType::Known(_)) {
            let _ = (view.to_f32(), view.as_slice::<f32>(), view.as_slice::<u8>());
        }
        if let Some(rows) = view.shape().first() {
            let _ = view.rows(rows / 2..*rows);
        }
        match tensor.kind() {
            TensorKind::Struct(_) => {
                let records = reader.strukt(name).expect("it was checked");
                for record in records.records() {
                    for field in records.fields() {
                        let _ = record.value(&field);
                    }
                }
            }
            TensorKind::Blob(blob) => {
                for at in 0..blob.count().min(8) {
                    let _ = reader.item(name, at);
                }
                if let Ok(items) = reader.blob(name) {
                    let whole: usize = items.items().map(<[u8]>::len).sum();
                    assert_eq!(whole, items.data().len());
                }
            }
            _ => {}
        }
    }
    verify(reader, VerifyDepth::Full, None).expect("memory can be read");
}

#[test]
fn hostile_headers_end_in_errors() {
    let full = std::env::var("ALKNET_SOAK").is_ok_and(|count| count == "full");
    let tally = campaign(if full { COUNT_FULL } else { COUNT }, SEED);
    eprintln!("figure mutated headers: {tally:?}");
    assert!(tally.accepted > 1000 && tally.refused > 1000, "{tally:?}");
}
