//! Files made by hand and by the writer.

use std::io::Cursor;

use alknet_tensor::{
    ContainerLimits, ContainerReader, ContainerWriter, Dtype, FieldType, StructField,
    TensorContent, TensorError, WriteSummary,
};

/// A file with this header and so many zeros behind it.
pub(crate) fn file(header: &str, data_len: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data_len, 0);
    file
}

/// Opens a file as one that came over a network.
pub(crate) fn open(file: &[u8]) -> Result<ContainerReader<Vec<u8>>, TensorError> {
    ContainerReader::open(file.to_vec(), &ContainerLimits::default())
}

/// Opens a file as one of one's own.
pub(crate) fn open_own(file: &[u8]) -> Result<ContainerReader<Vec<u8>>, TensorError> {
    ContainerReader::open(file.to_vec(), &ContainerLimits::safetensors())
}

/// A writer into memory.
pub(crate) fn writer<'a>() -> ContainerWriter<'a, Cursor<Vec<u8>>> {
    ContainerWriter::new(Cursor::new(Vec::new()))
}

/// What a writer makes.
pub(crate) fn finish(writer: ContainerWriter<'_, Cursor<Vec<u8>>>) -> (WriteSummary, Vec<u8>) {
    let (written, file) = writer.finish().expect("what was said is right");
    (written, file.into_inner())
}

/// The fields of [`RECORDS`].
pub(crate) fn fields() -> Vec<StructField<'static>> {
    vec![
        StructField::new("id", FieldType::Uint32, 0),
        StructField::new("live", FieldType::Boolean, 4),
        StructField::new("at/x", FieldType::Float32, 8).with_len(2),
        StructField::new("name", FieldType::String, 16).with_len(8),
    ]
}

/// Bytes of a record.
pub(crate) const STRIDE: u64 = 24;

/// Three records: id, whether it lives, a place, a name.
pub(crate) const RECORDS: [(u32, bool, [f32; 2], &str); 3] = [
    (7, true, [0.5, -1.0], "one"),
    (8, false, [2.0, 4.0], ""),
    (9, true, [0.0, 1e9], "drei-ä"),
];

/// Texts of any length, one of them empty.
pub(crate) const TEXTS: [&str; 4] = ["alpha", "", "größe", "日本"];

/// The bytes of [`RECORDS`].
pub(crate) fn records() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, live, at, name) in RECORDS {
        bytes.extend(id.to_le_bytes());
        bytes.extend([u8::from(live), 0, 0, 0]);
        bytes.extend(at.iter().flat_map(|x| x.to_le_bytes()));
        let mut text = name.as_bytes().to_vec();
        text.resize(8, 0);
        bytes.extend(text);
    }
    bytes
}

/// A metatensor with everything in it: elements, records, items, nothing at all, and one element.
pub(crate) fn sample() -> Vec<u8> {
    let mut writer = writer()
        .with_schema(r#"{"$defs":{"Thing":{"type":"object"}}}"#)
        .with_root(r##"{"model":{"w":"#weights"},"things":"#things"}"##);
    add_sample(&mut writer).expect("it fits");
    finish(writer).1
}

fn add_sample(writer: &mut ContainerWriter<'_, Cursor<Vec<u8>>>) -> Result<(), TensorError> {
    let weights: Vec<u8> = (0..6_u8).flat_map(|x| f32::from(x).to_le_bytes()).collect();
    let lengths = TEXTS.iter().map(|text| text.len() as u64);
    writer
        .flat("weights", Dtype::F32, &[2, 3], weights.into())?
        .strukt(
            "things",
            "#/$defs/Thing",
            [3, STRIDE],
            fields(),
            records().into(),
        )?
        .blob("texts", "utf8", lengths, TEXTS.concat().into_bytes().into())?
        .flat("nothing", Dtype::F64, &[0, 4], TensorContent::from(&[][..]))?
        .flat("one", Dtype::F16, &[], vec![0, 0x3c].into())?
        .flat("flags", Dtype::Bool, &[3], vec![1, 0, 1].into())?
        .metadata("format", "pt")?
        .metadata("mt.note", "made by a test")?;
    Ok(())
}
