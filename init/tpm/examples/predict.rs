//! Prints what a machine measures that starts a unified image, to compare it with what a machine
//! measured: `predict IMAGE [PROGRAM…]`, where the programs are those that are loaded before it.

use std::path::PathBuf;
use std::process::ExitCode;

use alknet_tpm::predict::{booted, predict_pcr4, predict_pcr11};

fn main() -> ExitCode {
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let Some(image) = paths.next() else {
        eprintln!("predict IMAGE [PROGRAM…]");
        return ExitCode::from(2);
    };
    match run(&image, paths.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(image: &PathBuf, before: Vec<PathBuf>) -> Result<(), Box<dyn std::error::Error>> {
    let image = std::fs::read(image)?;
    let before = before.iter().map(std::fs::read);
    let before = before.collect::<Result<Vec<_>, _>>()?;
    let mut programs: Vec<&[u8]> = before.iter().map(Vec::as_slice).collect();
    programs.push(&image);
    programs.push(booted(&image)?[1]);
    for failed in 0..3 {
        let value = hex(predict_pcr4(failed, &programs)?);
        println!("4 after {failed} boot options that led to nothing: {value}");
    }
    println!("11: {}", hex(predict_pcr11(&image)?));
    Ok(())
}

fn hex(bytes: [u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
