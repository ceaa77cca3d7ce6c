//! A session file. The first byte says whether the rest lacks its checksum, which is then appended.

use crate::{decoder, put, scratch, told};
use metal_candle::Session;

pub fn run(input: &[u8]) {
    let Some((&whole, rest)) = input.split_first() else { return };
    let mut file = rest.to_vec();
    if whole & 1 == 0 {
        let hash =
            rest.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        file.extend(hash.to_le_bytes());
    }
    let path = scratch().join("session");
    put(&path, &file);
    let Some(mut session) = told(Session::load(decoder(), &path)) else { return };
    if session.position() > 0 {
        told(session.logits().map(|logits| logits.len()));
    }
    told(session.append_tokens(&[1], None));
    told(session.logits().map(|logits| logits.len()));
    told(session.truncate(session.position() / 2));
    session.save(scratch().join("again")).expect("a session that was loaded is saved");
}
