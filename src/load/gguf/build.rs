//! GGUF files made by hand, for tests: little endian, version 3, as `gguf_writer.py` of llama.cpp lays them
//! out.

/// A file in the making.
#[derive(Clone)]
pub struct Build {
    pub version: u32,
    pub alignment: usize,
    keys: (u64, Vec<u8>),
    tensors: (u64, Vec<u8>),
    data: Vec<u8>,
}

impl Build {
    pub fn new() -> Self {
        Self { version: 3, alignment: 32, keys: (0, Vec::new()), tensors: (0, Vec::new()), data: Vec::new() }
    }

    /// A value of the type of this number.
    pub fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.0 += 1;
        self.keys.1.extend([&text(key.as_bytes()), kind.to_le_bytes().as_slice(), value].concat());
        self
    }

    /// A list of `len` values of the type of this number.
    pub fn list(self, key: &str, kind: u32, len: u64, values: &[u8]) -> Self {
        self.key(key, 9, &[&kind.to_le_bytes(), len.to_le_bytes().as_slice(), values].concat())
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.key(key, 8, &text(value.as_bytes()))
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.key(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.key(key, 6, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.key(key, 7, &[u8::from(value)])
    }

    pub fn strings(self, key: &str, values: &[&str]) -> Self {
        let texts: Vec<u8> = values.iter().flat_map(|value| text(value.as_bytes())).collect();
        self.list(key, 8, values.len() as u64, &texts)
    }

    pub fn ints(self, key: &str, values: &[i32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.list(key, 5, values.len() as u64, &bytes)
    }

    pub fn floats(self, key: &str, values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.list(key, 6, values.len() as u64, &bytes)
    }

    /// A tensor of our order of dimensions and the type of this number, behind the one before.
    pub fn tensor(self, name: &str, shape: &[u64], kind: u32, data: &[u8]) -> Self {
        let offset = self.data.len().next_multiple_of(self.alignment);
        self.tensor_at(name, shape, kind, offset as u64, data)
    }

    /// The same with any offset.
    pub fn tensor_at(mut self, name: &str, shape: &[u64], kind: u32, offset: u64, data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        self.data.extend(data);
        self.tensors.0 += 1;
        let dims: Vec<u8> = shape.iter().rev().flat_map(|dim| dim.to_le_bytes()).collect();
        let (count, kind) = ((shape.len() as u32).to_le_bytes(), kind.to_le_bytes());
        self.tensors.1.extend([&text(name.as_bytes()), count.as_slice(), &dims, &kind, &offset.to_le_bytes()].concat());
        self
    }

    /// The file. Nothing stands behind its last tensor.
    pub fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.0.to_le_bytes(), self.keys.0.to_le_bytes()].concat();
        let mut bytes = [b"GGUF", self.version.to_le_bytes().as_slice(), &counts, &self.keys.1, &self.tensors.1].concat();
        if self.tensors.0 > 0 {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend(&self.data);
        }
        bytes
    }
}

/// A text as files hold it.
pub fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}
