//! What is refused, by which name, and what every stock reader refuses too.

use alknet_tensor::limits::SCHEMA_DEPTH;
use alknet_tensor::{ContainerLimits, ContainerReader, Meta, TensorErrorCode};
use safetensors::SafeTensors;

use crate::common::{file, open, open_own};

/// Whose rule a file breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Shared by all tests.
    Shared,
    /// Ours alone.
    Ours,
}

use Rule::{Ours, Shared};

/// Headers of plain safetensors files, the bytes behind them, and what is wrong.
#[rustfmt::skip]
const PLAIN: &[(&str, usize, TensorErrorCode, Rule)] = &[
    ("{", 0, TensorErrorCode::Header, Shared),
    ("[]", 0, TensorErrorCode::Header, Shared),
    ("{]", 0, TensorErrorCode::Json, Shared),
    ("{}\0\0", 0, TensorErrorCode::Json, Shared),
    ("{} {}", 0, TensorErrorCode::Json, Shared),
    (" {}", 0, TensorErrorCode::Header, Ours),
    ("{}", 1, TensorErrorCode::Tiling, Shared),
    (r#"{"a":1}"#, 0, TensorErrorCode::Header, Shared),
    (r#"{"a":{}}"#, 0, TensorErrorCode::Header, Shared),
    (r#"{"a":{"shape":[],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Header, Shared),
    (r#"{"a":{"dtype":"U8","data_offsets":[0,1]}}"#, 1, TensorErrorCode::Header, Shared),
    (r#"{"a":{"dtype":"U8","shape":[]}}"#, 1, TensorErrorCode::Header, Shared),
    (r#"{"a":["U8",[1],[0,1]]}"#, 1, TensorErrorCode::Header, Ours),
    (r#"{"a":{"dtype":1,"shape":[1],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Dtype, Shared),
    (r#"{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Shape, Shared),
    (r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Shape, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Shape, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Shape, Shared),
    (r#"{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Json, Shared),
    (r#"{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Shape, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#, 1, TensorErrorCode::Tiling, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1.5]}}"#, 1, TensorErrorCode::Tiling, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#, 1, TensorErrorCode::Tiling, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}"#, 1, TensorErrorCode::Tiling, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}"#, 1, TensorErrorCode::Tiling, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#, 2, TensorErrorCode::Tiling, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 0, TensorErrorCode::Tiling, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 2, TensorErrorCode::Tiling, Shared),
    (r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#, 3, TensorErrorCode::Tiling, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#, 3, TensorErrorCode::Tiling, Shared),
    (r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, 2, TensorErrorCode::Tiling, Shared),
    (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,3]}}"#, 3, TensorErrorCode::Shape, Shared),
    (r#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0,0]}}"#, 0, TensorErrorCode::Shape, Shared),
    (r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2, TensorErrorCode::Dtype, Shared),
    (r#"{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0, TensorErrorCode::Overflow, Shared),
    (r#"{"a":{"dtype":"U64","shape":[2305843009213693952],"data_offsets":[0,0]}}"#, 0, TensorErrorCode::Overflow, Shared),
    (r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#, 0, TensorErrorCode::Overflow, Shared),
    (r#"{"__metadata__":1}"#, 0, TensorErrorCode::Header, Shared),
    (r#"{"__metadata__":{"a":1}}"#, 0, TensorErrorCode::Header, Shared),
    (r#"{"__metadata__":{"a":null}}"#, 0, TensorErrorCode::Header, Shared),
    (r#"{"__metadata__":{},"__metadata__":{}}"#, 0, TensorErrorCode::DupKey, Shared),
    (r#"{"__metadata__":{"a":"1","a":"1"}}"#, 0, TensorErrorCode::DupKey, Ours),
    (r#"{"__metadata__":{"a":"1","\u0061":"2"}}"#, 0, TensorErrorCode::DupKey, Ours),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::DupKey, Ours),
    (r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::DupKey, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::DupKey, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::DupKey, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1,"x":2}}"#, 1, TensorErrorCode::DupKey, Ours),
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{"y":[{"z":1,"z":1}]}}}"#, 1, TensorErrorCode::DupKey, Ours),
    (r#"{"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Limit, Ours),
    (r#"{"a\u0000":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Header, Ours),
    (r#"{"a\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Json, Shared),
    (r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#, 1, TensorErrorCode::Limit, Ours),
    (r#"{"__metadata__":{"metatensor":"2"}}"#, 0, TensorErrorCode::Version, Ours),
    (r#"{"__metadata__":{"metatensor":"one"}}"#, 0, TensorErrorCode::Version, Ours),
    (r#"{"__metadata__":{"metatensor":"1"}}"#, 0, TensorErrorCode::Schema, Ours),
];

/// Entries that the indices below are about: 48 bytes of records, two items, a pad, two elements.
const ENTRIES: &str = r#""s":{"dtype":"U8","shape":[2,24],"data_offsets":[0,48]},"__pad__.0":{"dtype":"U8","shape":[16],"data_offsets":[48,64]},"b":{"dtype":"U8","shape":[8],"data_offsets":[64,72]},"b.__off__":{"dtype":"U64","shape":[3],"data_offsets":[72,96]},"f":{"dtype":"F32","shape":[2],"data_offsets":[96,104]}"#;
/// Bytes of the entries.
const ENTRIES_LEN: usize = 104;

/// A good index of them, in parts that are replaced below.
const GOOD: [(&str, &str); 5] = [
    (
        "S",
        r#""s":{"kind":"struct","def":"X","stride":24,"count":2,"fields":[FIELDS]}"#,
    ),
    (
        "FIELDS",
        r#"{"path":"x","off":0,"type":"Float64"},{"path":"y","off":8,"type":"String","len":16}"#,
    ),
    ("B", r#","b":{"kind":"blob","enc":"utf8"}"#),
    ("F", r#","f":{"kind":"flat","align":8}"#),
    ("ORDER", r#","order":["f","s","b"]"#),
];

/// Parts of the index that are replaced, by what, and what is wrong then.
#[rustfmt::skip]
const INDICES: &[(&str, &str, TensorErrorCode)] = &[
    ("F", "", TensorErrorCode::Layout),
    ("F", r#","f":{"align":8}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":"cube"}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":1}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":"flat","kind":"flat"}"#, TensorErrorCode::DupKey),
    ("F", r#","f":{"kind":"flat","x":{"y":1,"y":1}}"#, TensorErrorCode::DupKey),
    ("F", r#","f":{"kind":"flat"},"f":{"kind":"flat"}"#, TensorErrorCode::DupKey),
    ("F", r#","f":{"kind":"flat","align":3}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":"flat","align":0}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":"flat","align":-8}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":"flat","align":131072}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":"flat","b3":"00"}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":"flat","b3":"zz00000000000000000000000000000000000000000000000000000000000000"}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":"flat"},"g":{"kind":"flat"}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":"flat"},"__pad__.0":{"kind":"flat"}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":"flat"},"b.__off__":{"kind":"blob","enc":"utf8"}"#, TensorErrorCode::Schema),
    ("F", r#","f":{"kind":"blob","enc":"utf8"}"#, TensorErrorCode::Layout),
    ("F", r#","f":{"kind":"struct","def":"X","stride":4,"count":2,"fields":[]}"#, TensorErrorCode::Layout),
    ("B", "", TensorErrorCode::Layout),
    ("B", r#","b":{"kind":"blob"}"#, TensorErrorCode::Schema),
    ("B", r#","b":{"kind":"flat"}"#, TensorErrorCode::Layout),
    ("B", r#","b":{"kind":"blob","enc":"utf8","shape_of":"unknown_peer"}"#, TensorErrorCode::Schema),
    ("B", r#","b":{"kind":"blob","enc":"utf8","shape_of":"b.__off__"}"#, TensorErrorCode::Schema),
    ("S", r#""s":{"kind":"struct","stride":24,"count":2,"fields":[]}"#, TensorErrorCode::Schema),
    ("S", r#""s":{"kind":"struct","def":"X","count":2,"fields":[]}"#, TensorErrorCode::Schema),
    ("S", r#""s":{"kind":"struct","def":"X","stride":24,"fields":[]}"#, TensorErrorCode::Schema),
    ("S", r#""s":{"kind":"struct","def":"X","stride":24,"count":2}"#, TensorErrorCode::Schema),
    ("S", r#""s":{"kind":"struct","def":"X","stride":12,"count":4,"fields":[]}"#, TensorErrorCode::Layout),
    ("S", r#""s":{"kind":"struct","def":"X","stride":0,"count":2,"fields":[]}"#, TensorErrorCode::Layout),
    ("S", r#""s":{"kind":"struct","def":"X","stride":4294967296,"count":4294967296,"fields":[]}"#, TensorErrorCode::Overflow),
    ("FIELDS", r#"{"path":"x","off":0,"type":"Float64"},{"path":"y","off":7,"type":"Uint8"}"#, TensorErrorCode::Layout),
    ("FIELDS", r#"{"path":"x","off":0,"type":"Float64"},{"path":"x","off":8,"type":"Uint8"}"#, TensorErrorCode::Layout),
    ("FIELDS", r#"{"path":"x","off":17,"type":"Float64"}"#, TensorErrorCode::Layout),
    ("FIELDS", r#"{"path":"x","off":0,"type":"Float64","len":2305843009213693952}"#, TensorErrorCode::Overflow),
    ("FIELDS", r#"{"path":"x","off":18446744073709551615,"type":"Uint8"}"#, TensorErrorCode::Overflow),
    ("FIELDS", r#"{"path":"x","off":0,"type":"Float80"}"#, TensorErrorCode::Schema),
    ("FIELDS", r#"{"path":"x","off":0,"type":"Union"}"#, TensorErrorCode::Schema),
    ("FIELDS", r#"{"path":"x","type":"Uint8"}"#, TensorErrorCode::Schema),
    ("FIELDS", r#"{"off":0,"type":"Uint8"}"#, TensorErrorCode::Schema),
    ("FIELDS", r#"{"path":"x","off":0}"#, TensorErrorCode::Schema),
    ("FIELDS", r#"{"path":"x","path":"x","off":0,"type":"Uint8"}"#, TensorErrorCode::DupKey),
    ("ORDER", "", TensorErrorCode::Schema),
    ("ORDER", r#","order":["f","s"]"#, TensorErrorCode::Schema),
    ("ORDER", r#","order":["f","s","b","b"]"#, TensorErrorCode::Schema),
    ("ORDER", r#","order":["f","s","b","b.__off__"]"#, TensorErrorCode::Schema),
    ("ORDER", r#","order":["f","s","b","__pad__.0"]"#, TensorErrorCode::Schema),
    ("ORDER", r#","order":["f","s","b","x"]"#, TensorErrorCode::Schema),
    ("ORDER", r#","order":["f","s",1]"#, TensorErrorCode::Schema),
    ("ORDER", r#","order":["f","s","b"],"order":["f","s","b"]"#, TensorErrorCode::DupKey),
    ("ORDER", r##","order":["f","s","b"],"root":["#f"]"##, TensorErrorCode::Schema),
    ("ORDER", r##","order":["f","s","b"],"root":{"a":["#f"]}"##, TensorErrorCode::Schema),
    ("ORDER", r##","order":["f","s","b"],"root":{"a":"f"}"##, TensorErrorCode::Schema),
    ("ORDER", r##","order":["f","s","b"],"root":{"a":"#g"}"##, TensorErrorCode::Schema),
    ("ORDER", r##","order":["f","s","b"],"root":{"a":"#b.__off__"}"##, TensorErrorCode::Schema),
    ("ORDER", r##","order":["f","s","b"],"root":{"a":1}"##, TensorErrorCode::Schema),
    ("ORDER", r##","order":["f","s","b"],"root":{"a":"#f","a":"#f"}"##, TensorErrorCode::DupKey),
    ("ORDER", r#","order":["f","s","b"],"root":{},"root":{}"#, TensorErrorCode::DupKey),
    ("ORDER", r#","order":["f","s","b"]]"#, TensorErrorCode::Json),
];

/// The good index with one part replaced.
fn index(part: &str, by: &str) -> String {
    let mut index = r#"{"tensors":{SBF}ORDER}"#.to_owned();
    // One letter would be found in words, so parts are replaced where they stand.
    index = index
        .replace("SBF", "\u{1}\u{2}\u{3}")
        .replace("ORDER", "\u{4}");
    for ((name, good), place) in GOOD
        .iter()
        .zip(["\u{1}", "FIELDS", "\u{2}", "\u{3}", "\u{4}"])
    {
        index = index.replace(place, if *name == part { by } else { good });
    }
    index
}

/// A file with this index and more metadata.
fn with_index(index: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let more: String = more
        .iter()
        .map(|(key, value)| format!(",{}:{}", quote(key), quote(value)))
        .collect();
    let header = format!(
        r#"{{"__metadata__":{{"metatensor":"1","mt.index":{}{more}}},{ENTRIES}}}"#,
        quote(index)
    );
    file(&header, ENTRIES_LEN)
}

#[track_caller]
fn refused(file: &[u8], code: TensorErrorCode, what: &str) {
    match open(file) {
        Ok(_) => panic!("accepted: {what}"),
        Err(error) => assert_eq!(error.code(), code, "{error}: {what}"),
    }
}

#[test]
fn plain_files_that_are_wrong_are_refused() {
    for (header, data, code, rule) in PLAIN {
        let file = file(header, *data);
        refused(&file, *code, header);
        let stock = SafeTensors::deserialize(&file);
        assert_eq!(stock.is_err(), *rule == Shared, "{header}: {stock:?}");
    }
}

#[test]
fn files_that_end_early_are_refused() {
    let good = file(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
        4,
    );
    open(&good).expect("it is whole");
    for end in 0..good.len() {
        let error = open(&good[..end]).expect_err("it is cut");
        let expected = [TensorErrorCode::Header, TensorErrorCode::Tiling];
        assert!(expected.contains(&error.code()), "{end}: {error}");
        assert!(SafeTensors::deserialize(&good[..end]).is_err(), "{end}");
    }
}

#[test]
fn lengths_of_headers_are_held_against_the_file() {
    for (len, code) in [
        (0, TensorErrorCode::Header),
        (1, TensorErrorCode::Header),
        (3, TensorErrorCode::Header),
        (u64::MAX, TensorErrorCode::Limit),
        (u64::MAX - 8, TensorErrorCode::Limit),
        ((16 << 20) + 1, TensorErrorCode::Limit),
        (16 << 20, TensorErrorCode::Header),
    ] {
        let mut file = file("{}", 0);
        file[..8].copy_from_slice(&u64::to_le_bytes(len));
        refused(&file, code, &len.to_string());
        assert!(SafeTensors::deserialize(&file).is_err(), "{len}");
    }
}

#[test]
fn the_index_is_held_against_the_entries() {
    let good = index("", "");
    let opened = open(&with_index(&good, &[])).expect("nothing is replaced");
    assert_eq!(opened.names().collect::<Vec<_>>(), ["f", "s", "b"]);
    for (part, by, code) in INDICES {
        let index = index(part, by);
        let file = with_index(&index, &[]);
        refused(&file, *code, &index);
        // What this format adds is nothing to a stock reader.
        SafeTensors::deserialize(&file).expect("a safetensors file");
    }
    for text in ["", "[]", "null", "{", r#"{"tensors":[],"order":[]}"#] {
        let error = open(&with_index(text, &[])).expect_err("refused");
        assert!(
            [TensorErrorCode::Json, TensorErrorCode::Schema].contains(&error.code()),
            "{error}"
        );
    }
}

#[test]
fn own_metadata_is_looked_at() {
    let good = index("", "");
    let zeros = "0".repeat(64);
    open(&with_index(
        &good,
        &[("mt.b3", &zeros), ("mt.schema", "{}")],
    ))
    .expect("good");
    let deep = |n| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let many = format!("[{}1]", "1,".repeat(10_000));
    let long = format!("\"{}\"", "x".repeat(1 << 20));
    for (key, value, code) in [
        ("mt.b3", "00", TensorErrorCode::Header),
        ("mt.b3", &*zeros.replace('0', "A"), TensorErrorCode::Header),
        ("mt.schema", "{", TensorErrorCode::Json),
        ("mt.schema", r#"{"a":1,"a":1}"#, TensorErrorCode::DupKey),
        (
            "mt.schema",
            r#"{"TypeDef:Struct":{"endian":"big"}}"#,
            TensorErrorCode::Schema,
        ),
        (
            "mt.schema",
            &*deep(SCHEMA_DEPTH as usize + 1),
            TensorErrorCode::Limit,
        ),
        ("mt.schema", &*many, TensorErrorCode::Limit),
        ("mt.schema", &*long, TensorErrorCode::Limit),
        ("note", &*long, TensorErrorCode::Limit),
    ] {
        refused(&with_index(&good, &[(key, value)]), code, key);
    }
    for schema in [
        &*deep(SCHEMA_DEPTH as usize),
        r#"{"TypeDef:Struct":{"endian":"little"}}"#,
    ] {
        open(&with_index(&good, &[("mt.schema", schema)])).expect("good");
    }
}

/// Each limit, one below and one above.
#[test]
fn limits_are_where_they_are_said_to_be() {
    let entry = |at: usize| {
        format!(
            r#""{at}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{}]}}"#,
            at + 1
        )
    };
    let entries = |n: usize| {
        let all: Vec<_> = (0..n).map(entry).collect();
        file(&format!("{{{}}}", all.join(",")), n)
    };
    open(&entries(65_536)).expect("as many as are allowed");
    refused(&entries(65_537), TensorErrorCode::Limit, "entries");
    open_own(&entries(65_537)).expect("one's own");

    let named = |len: usize| {
        let name = "n".repeat(len);
        file(
            &format!(r#"{{"{name}":{{"dtype":"U8","shape":[],"data_offsets":[0,1]}}}}"#),
            1,
        )
    };
    open(&named(1024)).expect("as long as is allowed");
    refused(&named(1025), TensorErrorCode::Limit, "name");
    open_own(&named(1025)).expect("one's own");

    let ranked = |rank: usize| {
        let shape = vec!["1"; rank].join(",");
        file(
            &format!(r#"{{"a":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}"#),
            1,
        )
    };
    open(&ranked(8)).expect("as many as are allowed");
    refused(&ranked(9), TensorErrorCode::Limit, "rank");
    open_own(&ranked(32)).expect("one's own");
    let error = open_own(&ranked(33)).expect_err("more dimensions than a reader takes");
    assert_eq!(error.code(), TensorErrorCode::Limit);

    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        file(
            &format!(
                r#"{{"a":{{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":{open}{close}}}}}"#
            ),
            1,
        )
    };
    open(&nested(30)).expect("as deep as is allowed");
    refused(&nested(31), TensorErrorCode::Limit, "depth");
    assert_eq!(
        open(&nested(1000)).expect_err("deep").code(),
        TensorErrorCode::Limit
    );

    let described = |len: usize| {
        let text = "x".repeat(len - 1);
        file(&format!(r#"{{"__metadata__":{{"k":"{text}"}}}}"#), 0)
    };
    open(&described(1 << 20)).expect("as long as is allowed");
    refused(
        &described((1 << 20) + 1),
        TensorErrorCode::Limit,
        "metadata",
    );
    open_own(&described((1 << 20) + 1)).expect("one's own");

    let long = format!("{{{}}}", " ".repeat((16 << 20) - 2));
    Meta::parse(long.as_bytes(), 0, &ContainerLimits::default()).expect("as long as is allowed");
    let longer = format!("{long} ");
    let error = Meta::parse(longer.as_bytes(), 0, &ContainerLimits::default()).expect_err("longer");
    assert_eq!(error.code(), TensorErrorCode::Limit);
    Meta::parse(longer.as_bytes(), 0, &ContainerLimits::safetensors()).expect("one's own");
}

#[test]
fn what_stock_writers_may_write_opens() {
    for (header, data) in [
        ("{}", 0),
        ("{}  \n\r\t", 0),
        (r#"{"__metadata__":null}"#, 0),
        (
            r#"{"__metadata__":{"format":"pt","mt.index":"not ours at level 0"}}"#,
            0,
        ),
        (
            r#"{"__pad__.x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
            4,
        ),
        (
            r#"{"a.__off__":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
            4,
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
            0,
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{"y":[1.5,null,true,"z"]}}}"#,
            1,
        ),
    ] {
        let file = file(header, data);
        let opened = open(&file).unwrap_or_else(|error| panic!("{header}: {error}"));
        assert_eq!(opened.meta().level(), 0);
        let names = opened.names().count();
        let stock = SafeTensors::deserialize(&file).expect("a safetensors file");
        assert_eq!(stock.len(), names);
    }
}

#[test]
fn unknown_types_are_opaque() {
    let header = r#"{"a":{"dtype":"F2","shape":[7],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}"#;
    let opened = open(&file(header, 4)).expect("it tiles");
    let view = opened.view("a").expect("its bytes are there");
    assert_eq!(
        (view.dtype().to_string(), view.bytes().len()),
        ("F2".to_owned(), 3)
    );
    assert_eq!(
        view.as_slice::<u8>().expect_err("no elements").code(),
        TensorErrorCode::Dtype
    );
    assert_eq!(
        view.to_f32().expect_err("no elements").code(),
        TensorErrorCode::Dtype
    );
    assert_eq!(
        view.rows(0..1).expect_err("no rows").code(),
        TensorErrorCode::Dtype
    );
    assert_eq!(opened.view("b").expect("known").bytes(), [0]);
    let hole = header.replace("[3,4]", "[4,5]");
    refused(&file(&hole, 5), TensorErrorCode::Tiling, &hole);
}

#[test]
fn errors_name_what_is_wrong() {
    let said = |header: &str, data| open(&file(header, data)).expect_err("refused").to_string();
    let control = said(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b\n":{"dtype":"U8","shape":[4],"data_offsets":[8,12]}}"#,
        12,
    );
    assert_eq!(
        control,
        "E_HEADER: entry \"b\\n\": name with a control character"
    );
    let tiling = said(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[8,12]}}"#,
        12,
    );
    assert_eq!(
        tiling,
        "E_TILING: entry \"b\": begins at 8, what is before it ends at 4"
    );
    let shape = said(
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        4,
    );
    assert_eq!(
        shape,
        "E_SHAPE: entry \"a\": F32 of shape [2] is 8 bytes, the entry has 4"
    );
    let negative = said(
        r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,4]}}"#,
        4,
    );
    assert!(
        negative.starts_with("E_SHAPE: header: \"a\": invalid value: integer `-2`"),
        "{negative}"
    );
}

#[test]
fn a_header_without_its_file_is_read_too() {
    let header = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let meta = Meta::parse(header, 1, &ContainerLimits::default()).expect("good");
    assert_eq!(meta.file_len(), 8 + header.len() as u64 + 1);
    let error =
        Meta::parse(header, u64::MAX, &ContainerLimits::default()).expect_err("beyond 64 bits");
    assert_eq!(error.code(), TensorErrorCode::Overflow);
    let error = Meta::parse(b"", 0, &ContainerLimits::default()).expect_err("nothing");
    assert_eq!(error.code(), TensorErrorCode::Header);
    let latin = b"{\"\xe4\":{}}";
    let error = Meta::parse(latin, 0, &ContainerLimits::default()).expect_err("no UTF-8");
    assert_eq!(error.code(), TensorErrorCode::Json);
    assert!(ContainerReader::open(&[0_u8; 0][..], &ContainerLimits::default()).is_err());
}
