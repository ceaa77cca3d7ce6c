//! FNV-1a, which fingerprints are made of: it must be the same in every version and on every machine.
//! <http://www.isthe.com/chongo/tech/comp/fnv/>

pub const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash of what came before, and `bytes`.
pub const fn fnv(start: u64, bytes: &[u8]) -> u64 {
    let (mut hash, mut rest) = (start, bytes);
    while let [byte, more @ ..] = rest {
        (hash, rest) = ((hash ^ *byte as u64).wrapping_mul(0x0100_0000_01b3), more);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_reference() {
        for (text, hash) in [("", FNV_START), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)] {
            assert_eq!(fnv(FNV_START, text.as_bytes()), hash);
        }
        assert_eq!(fnv(fnv(FNV_START, b"foo"), b"bar"), 0x8594_4171_f739_67e8);
    }
}
