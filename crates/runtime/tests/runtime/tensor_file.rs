//! A reader of tensor files in forty lines of JavaScript, over a file of the package that makes them.

use std::io::Cursor;
use std::sync::Arc;

use alknet_runtime::Isolate;
use alknet_tensor::{ContainerWriter, Dtype, FieldType, StructField, TensorContent};
use serde_json::json;

use crate::support::{RecordingHost, main, modules, wait};

const READER: &str = include_str!("../../../../docs/examples/tensor_reader.js");

fn file() -> Vec<u8> {
    let mut writer = ContainerWriter::new(Cursor::new(Vec::new()));
    let weights = [0.5_f32, -1.0, 2.25, 3.0, 4.0, 5.0];
    let mut points = Vec::new();
    for (id, x, name) in [(7_u32, [1.5_f32, -2.0], "né"), (9, [0.0, 8.0], "")] {
        points.extend(id.to_le_bytes());
        points.extend(x.iter().flat_map(|x| x.to_le_bytes()));
        let mut text = name.as_bytes().to_vec();
        text.resize(4, 0);
        points.extend(text);
    }
    let fields = vec![
        StructField::new("/id", FieldType::Uint32, 0),
        StructField::new("/at", FieldType::Float32, 4).with_len(2),
        StructField::new("/name", FieldType::String, 12).with_len(4),
    ];
    let add = || {
        writer
            .flat("bytes", Dtype::U8, &[3], vec![1, 2, 3].into())?
            .flat(
                "weights",
                Dtype::F32,
                &[2, 3],
                TensorContent::elements(&weights),
            )?
            .strukt("points", "#/$defs/P", [2, 16], fields, points.into())?
            .blob("names", "utf8", [3, 0, 5], b"onethree".to_vec().into())?
            .flat("long", Dtype::I64, &[1], TensorContent::elements(&[-5_i64]))?
            .metadata("format", "pt")?;
        Ok::<(), alknet_tensor::TensorError>(())
    };
    add().expect("it fits");
    writer.finish().expect("memory").1.into_inner()
}

#[test]
fn forty_lines_read_a_file_where_it_lies() {
    let lines = READER.lines();
    let code = lines.filter(|line| !line.is_empty() && !line.starts_with("//"));
    assert!(code.count() <= 40, "the reader has forty lines");
    let source = "
        import { open } from './tensor_reader.js';
        const file = await ops.call('file');
        const { names, metadata, view, records, items } = open(file);
        const weights = view('weights');
        const text = new TextDecoder();
        export default {
            names, format: metadata.format, shape: weights.shape, weights: [...weights.data],
            inPlace: weights.data.buffer === file && view('bytes').data.buffer === file,
            immutable: file.immutable, bytes: [...view('bytes').data], long: view('long').data[0].toString(),
            points: records('points'), texts: items('names').map((item) => text.decode(item)),
        };";
    let host = Arc::new(RecordingHost {
        file: file().into(),
        ..RecordingHost::default()
    });
    let spec = modules(&[("./main.js", source), ("./tensor_reader.js", READER)]);
    let mut isolate = Isolate::open(spec, host).expect("an isolate");
    let outcome = wait(isolate.run(main()));
    let expected = json!({
        "names": ["bytes", "weights", "points", "names", "names.__off__", "long"],
        "format": "pt", "shape": [2, 3], "weights": [0.5, -1, 2.25, 3, 4, 5],
        "inPlace": true, "immutable": true, "bytes": [1, 2, 3], "long": "-5",
        "points": [
            { "/id": 7, "/at": [1.5, -2], "/name": "né" },
            { "/id": 9, "/at": [0, 8], "/name": "" },
        ],
        "texts": ["one", "", "three"],
    });
    assert_eq!(outcome.result, Ok(expected));
}
