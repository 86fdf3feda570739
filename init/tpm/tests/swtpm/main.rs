//! Tests against a TPM in software, with the tools of others on the other side.

mod beside;
mod boots;
mod counting;
mod enforced;
mod hostile;
mod machine;
mod measured;
mod pins;
mod sealing;
mod tap;
mod tpm2_tools;

use alknet_tpm::{PcrChoice, TpmPin};
use alknet_vault::SecretStr;
use alknet_vault::slots::Kek;

fn kek() -> Kek {
    alknet_tpm::new_kek().expect("random numbers")
}

fn pin(text: &str) -> TpmPin {
    TpmPin::new(SecretStr::from(text)).expect("a PIN")
}

fn choice() -> PcrChoice {
    PcrChoice::enforced()
}
