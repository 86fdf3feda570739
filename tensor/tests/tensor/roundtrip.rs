//! What is written is read, by us and by the stock reader.

use std::collections::BTreeMap;
use std::io::Cursor;

use alknet_tensor::keys::is_reserved;
use alknet_tensor::tools::{RewriteOptions, hashes, rewrite, strip};
use alknet_tensor::{
    ContainerLimits, ContainerReader, ContainerWriter, Dtype, FieldType, FileId, LayoutOracle,
    RecordFieldValue, StructField, StructLayout, TensorContent, TensorError, TensorErrorCode,
    TensorKind, VerifyDepth, WriteSummary, verify,
};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::common::{RECORDS, STRIDE, TEXTS, fields, finish, open, open_own, sample, writer};

#[test]
fn every_kind_comes_back() {
    let file = sample();
    let reader = open(&file).expect("good");
    let meta = reader.meta();
    assert_eq!(meta.level(), 1);
    assert_eq!(meta.data_start() % 64, 0);
    let names: Vec<_> = reader.names().collect();
    assert_eq!(
        names,
        ["weights", "things", "texts", "nothing", "one", "flags"]
    );
    for tensor in meta.tensors() {
        let align = tensor.align().expect("it is said");
        assert_eq!(tensor.entry().file_range().start % u64::from(align), 0);
    }
    assert_eq!(meta.metadata_value("format"), Some("pt"));
    assert_eq!(meta.metadata_value("mt.note"), Some("made by a test"));
    assert_eq!(
        meta.root(),
        Some(r##"{"model":{"w":"#weights"},"things":"#things"}"##)
    );
    assert_eq!(reader.view("nothing").expect("there").shape(), [0, 4]);
    assert_eq!(
        reader.view("one").expect("there").to_f32().expect("real"),
        [1.0]
    );

    let things = reader.strukt("things").expect("records");
    assert_eq!((things.len(), things.stride()), (3, STRIDE));
    for (record, (id, live, at, name)) in things.records().zip(RECORDS) {
        let place = at.map(|x| RecordFieldValue::Float(x.into())).to_vec();
        assert_eq!(
            record.get("id").expect("there"),
            RecordFieldValue::Uint(id.into())
        );
        assert_eq!(
            record.get("live").expect("there"),
            RecordFieldValue::Bool(live)
        );
        assert_eq!(
            record.get("at/x").expect("there"),
            RecordFieldValue::List(place)
        );
        assert_eq!(
            record.get("name").expect("there"),
            RecordFieldValue::Text(name)
        );
        assert_eq!(
            record.get("nobody").expect_err("no field").code(),
            TensorErrorCode::NotFound
        );
    }
    let ids: Vec<u32> = things.column("id").expect("numbers").collect();
    assert_eq!(ids, [7, 8, 9]);
    let xs: Vec<f32> = things.column("at/x").expect("numbers").collect();
    assert_eq!(xs, [0.5, 2.0, 0.0]);
    assert_eq!(
        things.column::<f64>("id").expect_err("no double").code(),
        TensorErrorCode::Dtype
    );
    assert_eq!(
        things.record(3).expect_err("three").code(),
        TensorErrorCode::NotFound
    );
    let last = reader.strukt_rows("things", 2..3).expect("a record");
    assert_eq!(
        last.record(0).expect("it").get("id").expect("there"),
        RecordFieldValue::Uint(9)
    );

    let texts = reader.blob("texts").expect("items");
    assert_eq!(texts.enc(), "utf8");
    let read: Vec<_> = (0..texts.len())
        .map(|at| texts.text(at).expect("UTF-8"))
        .collect();
    assert_eq!(read, TEXTS);
    for wrong in [
        reader.blob("weights").map(|_| ()),
        reader.strukt("texts").map(|_| ()),
    ] {
        assert_eq!(
            wrong.expect_err("another kind").code(),
            TensorErrorCode::Dtype
        );
    }
    for hidden in ["__pad__.0", "texts.__off__", "nobody", "__metadata__"] {
        assert_eq!(
            reader.view(hidden).expect_err("no tensor").code(),
            TensorErrorCode::NotFound
        );
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    assert_eq!(sample(), sample());
}

#[test]
fn gpus_and_pages_have_their_alignment() {
    let large = vec![7_u8; 1 << 20];
    let mut all = writer().page_aligned().for_gpu();
    all.flat("small", Dtype::U8, &[5], vec![1; 5].into())
        .and_then(|all| all.flat("large", Dtype::U8, &[1 << 20], (&large[..]).into()))
        .and_then(|all| all.flat("end", Dtype::U8, &[1], vec![2].into()))
        .expect("they fit");
    let (_, file) = finish(all);
    let reader = open(&file).expect("good");
    assert_eq!(reader.meta().metadata_value("mt.gpu"), Some("1"));
    let place = |name: &str| {
        reader
            .tensor(name)
            .expect("there")
            .entry()
            .file_range()
            .start
    };
    assert_eq!(
        [
            place("small") % 256,
            place("large") % 4096,
            place("end") % 256
        ],
        [0; 3]
    );
}

#[test]
fn writers_refuse_what_readers_would() {
    let one = || TensorContent::from(vec![1]);
    let mut reserved = writer();
    for name in ["__pad__.1", "a.__off__", "__metadata__"] {
        let error = reserved
            .flat(name, Dtype::U8, &[1], one())
            .expect_err("reserved");
        assert_eq!(error.code(), TensorErrorCode::Header);
    }
    assert_eq!(
        reserved.metadata("mt.index", "").expect_err("ours").code(),
        TensorErrorCode::Header
    );
    let short = reserved
        .flat("a", Dtype::F32, &[1], one())
        .expect_err("too short");
    assert_eq!(short.code(), TensorErrorCode::Shape);
    let known = reserved
        .opaque("a", "F32", &[1], 4, one())
        .expect_err("it is known");
    assert_eq!(known.code(), TensorErrorCode::Dtype);

    let ends =
        |writer: ContainerWriter<'_, Cursor<Vec<u8>>>| writer.finish().expect_err("refused").code();
    let mut twice = writer();
    for _ in 0..2 {
        twice
            .flat("a", Dtype::U8, &[1], one())
            .expect("one by one they are good");
    }
    assert_eq!(ends(twice), TensorErrorCode::DupKey);
    let mut long = writer().with_limits(ContainerLimits::default());
    long.flat("n".repeat(1025), Dtype::U8, &[1], one())
        .expect("found at the end");
    assert_eq!(ends(long), TensorErrorCode::Limit);
    let mut overlap = writer();
    let fields = vec![
        StructField::new("a", FieldType::Uint16, 0),
        StructField::new("b", FieldType::Int8, 1),
    ];
    overlap
        .strukt("s", "X", [0, 2], fields, vec![].into())
        .expect("found at the end");
    assert_eq!(ends(overlap), TensorErrorCode::Layout);
    assert_eq!(
        ends(writer().with_root("{\"a\":\"#nobody\"}")),
        TensorErrorCode::Schema
    );
    assert_eq!(ends(writer().with_root("no JSON")), TensorErrorCode::Json);
    assert_eq!(
        ends(writer().with_order(vec!["nobody".to_owned()])),
        TensorErrorCode::Schema
    );
    assert_eq!(ends(writer().with_schema("{")), TensorErrorCode::Json);
    let mut metadata = writer();
    metadata
        .metadata("a", "1")
        .and_then(|m| m.metadata("a", "2"))
        .expect("found at the end");
    assert_eq!(ends(metadata), TensorErrorCode::DupKey);
    let mut blob = writer();
    let error = blob
        .blob("b", "utf8", [u64::MAX, 1], one())
        .expect_err("beyond 64 bits");
    assert_eq!(error.code(), TensorErrorCode::Overflow);
}

/// What a layout engine would say of [`fields`].
struct Oracle(StructLayout);

impl LayoutOracle for Oracle {
    fn layout(&self, _: &str, def: &str) -> Result<StructLayout, String> {
        match def {
            "#/$defs/Thing" => Ok(self.0.clone()),
            _ => Err("no such definition".to_owned()),
        }
    }
}

#[test]
fn layouts_are_held_against_the_schema() {
    let file = sample();
    let reader = open(&file).expect("good");
    let layout = StructLayout {
        stride: STRIDE,
        fields: fields(),
        members: Vec::new(),
    };
    let code = |change: &dyn Fn(&mut StructLayout)| {
        let mut layout = layout.clone();
        change(&mut layout);
        let checked = reader.meta().check_layouts(&Oracle(layout));
        checked.err().map(|error| error.code())
    };
    assert_eq!(code(&|layout| layout.fields.reverse()), None);
    assert_eq!(
        code(&|layout| layout.stride = 32),
        Some(TensorErrorCode::Layout)
    );
    assert_eq!(
        code(&|layout| layout.fields[0].off = 5),
        Some(TensorErrorCode::Layout)
    );
    assert_eq!(
        code(&|layout| layout.fields[1].kind = FieldType::Int8),
        Some(TensorErrorCode::Layout)
    );
    assert_eq!(
        code(&|layout| drop(layout.fields.pop())),
        Some(TensorErrorCode::Layout)
    );
    let report = verify(&reader, VerifyDepth::Full, Some(&Oracle(layout))).expect("in memory");
    assert!(report.is_good(), "{report:?}");
}

#[test]
fn members_of_enums_are_counted() {
    let fields = vec![StructField::new("color", FieldType::Enum, 0)];
    let mut all = writer().with_schema("{}");
    let values = [0_u32, 2].map(u32::to_le_bytes).concat();
    all.strukt("s", "#/$defs/Thing", [2, 4], fields.clone(), values.into())
        .expect("it fits");
    let (_, file) = finish(all);
    let reader = open(&file).expect("good");
    for (count, problems) in [(3, vec![]), (2, vec![TensorErrorCode::Value])] {
        let oracle = Oracle(StructLayout {
            stride: 4,
            fields: fields.clone(),
            members: vec![("color".to_owned(), count)],
        });
        let report = verify(&reader, VerifyDepth::Full, Some(&oracle)).expect("in memory");
        let found: Vec<_> = report.problems.iter().map(TensorError::code).collect();
        assert_eq!(found, problems);
    }
}

/// A tensor to be.
#[derive(Clone, Debug)]
enum TensorFixture {
    Flat(Dtype, Vec<u64>, Vec<u8>),
    Struct(u64, Vec<(FieldType, u64, u64)>, u64),
    Blob(Vec<String>),
}

/// A file to be.
#[derive(Clone, Debug)]
struct FileFixture {
    tensors: BTreeMap<String, TensorFixture>,
    metadata: BTreeMap<String, String>,
    pages: bool,
    gpu: bool,
    reversed: bool,
}

fn flat() -> impl Strategy<Value = TensorFixture> {
    let dtype = proptest::sample::select(Dtype::ALL.to_vec());
    let shape = proptest::collection::vec(0_u64..5, 0..4);
    (dtype, shape, any::<u64>()).prop_map(|(dtype, mut shape, seed)| {
        if shape.iter().product::<u64>() * dtype.bits() % 8 != 0 {
            shape.push(4);
        }
        let len = shape.iter().product::<u64>() * dtype.bits() / 8;
        let byte = |at: u64| (seed.wrapping_mul(at + 1) >> 32) as u8;
        let mask = if dtype == Dtype::Bool { 1 } else { 0xff };
        TensorFixture::Flat(dtype, shape, (0..len).map(|at| byte(at) & mask).collect())
    })
}

fn records() -> impl Strategy<Value = TensorFixture> {
    let kind = proptest::sample::select(FieldType::ALL.to_vec());
    // A gap before the field, what it is, and how many.
    let field = (0_u64..4, kind, 4_u64..9);
    (0_u64..5, proptest::collection::vec(field, 0..6)).prop_map(|(count, parts)| {
        let mut at = 0;
        let mut fields = Vec::new();
        for (gap, kind, len) in parts {
            at += gap;
            fields.push((kind, at, len));
            at += StructField::new("", kind, 0)
                .with_len(len)
                .bytes()
                .expect("few");
        }
        TensorFixture::Struct(count, fields, at + 1)
    })
}

fn plan() -> impl Strategy<Value = FileFixture> {
    let name = "[a-z0-9_. äß\"\\\\/{}]{1,10}".prop_filter("reserved", |name| !is_reserved(name));
    let items = proptest::collection::vec("[a-zäö\\PC]{0,6}", 0..6);
    let spec = prop_oneof![
        3 => flat(),
        1 => records(),
        1 => items.prop_map(TensorFixture::Blob),
    ];
    let key =
        "[a-z.]{1,6}".prop_filter("ours", |key| !key.starts_with("mt") && key != "metatensor");
    (
        proptest::collection::btree_map(name, spec, 0..7),
        proptest::collection::btree_map(key, "\\PC{0,12}", 0..3),
        any::<[bool; 3]>(),
    )
        .prop_map(|(tensors, metadata, [pages, gpu, reversed])| FileFixture {
            tensors,
            metadata,
            pages,
            gpu,
            reversed,
        })
}

impl FileFixture {
    fn write(&self) -> (WriteSummary, Vec<u8>) {
        let mut all = writer();
        if self.pages {
            all = all.page_aligned();
        }
        if self.gpu {
            all = all.for_gpu();
        }
        if self.reversed {
            all = all.with_order(self.tensors.keys().rev().cloned().collect());
        }
        for (key, value) in &self.metadata {
            all.metadata(key, value).expect("nobody's");
        }
        for (name, spec) in &self.tensors {
            let added = match spec {
                TensorFixture::Flat(dtype, shape, bytes) => {
                    all.flat(name, *dtype, shape, (&bytes[..]).into())
                }
                TensorFixture::Struct(count, parts, stride) => {
                    let named = |(at, &(kind, off, len)): (usize, &_)| {
                        StructField::new(format!("f{at}"), kind, off).with_len(len)
                    };
                    let fields = parts.iter().enumerate().map(named).collect();
                    // Zeros are a value of every type.
                    let bytes = vec![0; (count * stride) as usize];
                    all.strukt(name, "#", [*count, *stride], fields, bytes.into())
                }
                TensorFixture::Blob(items) => {
                    let lengths = items.iter().map(|item| item.len() as u64);
                    all.blob(name, "utf8", lengths, items.concat().into_bytes().into())
                }
            };
            added.expect("it fits");
        }
        finish(all)
    }

    fn check(&self, reader: &ContainerReader<Vec<u8>>) {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        if self.reversed {
            names.reverse();
        }
        assert_eq!(reader.names().collect::<Vec<_>>(), names);
        for (name, spec) in &self.tensors {
            match spec {
                TensorFixture::Flat(dtype, shape, bytes) => {
                    let view = reader.view(name).expect("there");
                    assert_eq!(view.dtype().known(), Some(*dtype));
                    assert_eq!((view.shape(), view.bytes()), (&shape[..], &bytes[..]));
                }
                TensorFixture::Struct(count, parts, stride) => {
                    let view = reader.strukt(name).expect("records");
                    assert_eq!((view.len(), view.stride()), (*count, *stride));
                    let read = view
                        .fields()
                        .map(|field| (field.kind, field.off, field.len));
                    assert_eq!(&read.collect::<Vec<_>>(), parts);
                }
                TensorFixture::Blob(items) => {
                    let view = reader.blob(name).expect("items");
                    let read: Vec<_> = view.items().collect();
                    let items: Vec<_> = items.iter().map(|item| item.as_bytes()).collect();
                    assert_eq!(read, items);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(plan in plan()) {
        let (written, file) = plan.write();
        prop_assert_eq!(written.id, FileId(blake3::hash(&file)));
        prop_assert_eq!(written.file_len, file.len() as u64);
        let reader = open_own(&file).expect("we wrote it");
        plan.check(&reader);
        let report = verify(&reader, VerifyDepth::Full, None).expect("in memory");
        prop_assert!(report.is_good(), "{:?}", report);
        prop_assert_eq!(report.unhashed, 0);
        let hashes = hashes(&reader).expect("in memory");
        prop_assert_eq!((hashes.id, hashes.header), (written.id, written.header_hash));
        prop_assert_eq!(Some(hashes.data), reader.meta().data_hash());
        for (name, hash) in &hashes.tensors {
            prop_assert_eq!(reader.tensor(name).expect("there").hash(), Some(*hash));
        }

        // The stock reader takes it and sees the same bytes.
        let stock = SafeTensors::deserialize(&file).expect("a safetensors file");
        prop_assert_eq!(stock.len(), reader.meta().entries().len());
        for (name, spec) in &plan.tensors {
            if let TensorFixture::Flat(dtype, _, bytes) = spec {
                let seen = stock.tensor(name).expect("there");
                prop_assert_eq!(seen.dtype().to_string(), dtype.name());
                prop_assert_eq!(seen.data(), &bytes[..]);
            }
        }

        // Written again, it is the same file; without what this format adds, a stock one.
        let options = RewriteOptions { page_align: plan.pages, gpu: false };
        let (again, copy) = rewrite(&reader, Cursor::new(Vec::new()), options).expect("written");
        prop_assert_eq!(again.id, written.id);
        prop_assert!(copy.into_inner() == file);
        let (_, plain) = strip(&reader, Cursor::new(Vec::new())).expect("stripped");
        let plain = plain.into_inner();
        let entries: Vec<_> = reader.meta().entries().filter(|entry| !entry.is_pad()).collect();
        let stock = SafeTensors::deserialize(&plain).expect("a safetensors file");
        prop_assert_eq!(stock.len(), entries.len());
        for entry in entries {
            let range = entry.file_range();
            let bytes = &file[range.start as usize..range.end as usize];
            prop_assert_eq!(stock.tensor(entry.name()).expect("there").data(), bytes);
        }
        // With at most one pair of metadata the stock writer is deterministic, too.
        if plan.metadata.len() < 2 {
            let metadata = (!plan.metadata.is_empty()).then(|| plan.metadata.clone().into_iter().collect());
            let theirs = safetensors::serialize(stock.tensors(), metadata).expect("written");
            prop_assert!(theirs == plain);
        }
    }

    #[test]
    fn what_the_stock_writer_makes_opens(plan in plan()) {
        let (_, file) = plan.write();
        let reader = open_own(&file).expect("we wrote it");
        let (_, plain) = strip(&reader, Cursor::new(Vec::new())).expect("stripped");
        let plain = plain.into_inner();
        let stock = SafeTensors::deserialize(&plain).expect("a safetensors file");
        let theirs = safetensors::serialize(stock.tensors(), None).expect("written");
        let opened = open_own(&theirs).expect("a safetensors file");
        prop_assert_eq!(opened.meta().level(), 0);
        for (name, seen) in stock.tensors() {
            let view = opened.view(&name).expect("there");
            prop_assert_eq!(view.bytes(), seen.data());
            let kind = opened.tensor(&name).expect("there").kind();
            prop_assert!(matches!(kind, TensorKind::Flat));
        }
    }
}
