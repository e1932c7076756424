//! Avro's binary primitives and the Confluent wire frame, written into and read from plain byte slices.
//!
//! The hot path encodes tuple slices straight into one buffer; `apache_avro::Value` would allocate per field. The apache-avro
//! crate parses our schemas and is the oracle in the tests.

use crate::Error;

/// Magic byte and schema id.
pub const FRAME_BYTES: usize = 5;

pub fn put_frame(out: &mut Vec<u8>, schema_id: u32) {
    out.push(0);
    out.extend_from_slice(&schema_id.to_be_bytes());
}

/// The schema id of a framed record and the record's body.
pub fn frame(record: &[u8]) -> Result<(u32, &[u8]), Error> {
    match record {
        [0, a, b, c, d, body @ ..] => Ok((u32::from_be_bytes([*a, *b, *c, *d]), body)),
        [0, ..] => Err(Error::Truncated { at: record.len(), needed: FRAME_BYTES - record.len() }),
        [] => Err(Error::Truncated { at: 0, needed: FRAME_BYTES }),
        _ => Err(Error::Corrupt { at: 0, what: "no Confluent wire format: the first byte is not 0" }),
    }
}

pub fn put_long(out: &mut Vec<u8>, number: i64) {
    let mut zigzag = ((number << 1) ^ (number >> 63)) as u64;
    while zigzag >= 0x80 {
        out.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    out.push(zigzag as u8);
}

pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

pub fn put_boolean(out: &mut Vec<u8>, value: bool) {
    out.push(u8::from(value));
}

/// Reads primitives from a slice; every read is checked.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn corrupt(&self, what: &'static str) -> Error {
        Error::Corrupt { at: self.at, what }
    }

    /// An error unless everything was read.
    pub fn finish(&self) -> Result<(), Error> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.corrupt("bytes left over after the record")) }
    }

    /// Whether nothing is left: of a record that an earlier version wrote, with fewer fields.
    pub fn ended(&self) -> bool {
        self.at == self.bytes.len()
    }

    #[inline]
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let left = self.bytes.len() - self.at;
        if length > left {
            return Err(Error::Truncated { at: self.bytes.len(), needed: length - left });
        }
        let slice = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(slice)
    }

    pub fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    pub fn boolean(&mut self) -> Result<bool, Error> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.corrupt("a boolean that is neither 0 nor 1")),
        }
    }

    #[inline]
    pub fn long(&mut self) -> Result<i64, Error> {
        // Most are lengths, ordinals and branches: one byte.
        match self.bytes.get(self.at) {
            Some(byte) if *byte < 0x80 => {
                self.at += 1;
                Ok(i64::from(byte >> 1) ^ -i64::from(byte & 1))
            }
            _ => self.long_of_several_bytes(),
        }
    }

    fn long_of_several_bytes(&mut self) -> Result<i64, Error> {
        let mut zigzag = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            zigzag |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
            }
        }
        Err(self.corrupt("a number of more than 64 bits"))
    }

    pub fn int(&mut self) -> Result<i32, Error> {
        i32::try_from(self.long()?).map_err(|_| self.corrupt("an int of more than 32 bits"))
    }

    /// A count or length: never negative.
    pub fn unsigned(&mut self) -> Result<u64, Error> {
        u64::try_from(self.long()?).map_err(|_| self.corrupt("a negative count"))
    }

    #[inline]
    pub fn bytes(&mut self) -> Result<&'a [u8], Error> {
        let length = self.unsigned()?;
        let length = usize::try_from(length).map_err(|_| self.corrupt("a length beyond memory"))?;
        self.take(length)
    }

    pub fn string(&mut self) -> Result<&'a str, Error> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map_err(|_| self.corrupt("a string that is not UTF-8"))
    }

    pub fn float(&mut self) -> Result<f32, Error> {
        let bytes = self.take(4)?;
        Ok(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub fn double(&mut self) -> Result<f64, Error> {
        let bytes = self.take(8)?;
        let mut raw = [0; 8];
        raw.copy_from_slice(bytes);
        Ok(f64::from_le_bytes(raw))
    }

    /// The branch of a union `["null", T]`: whether there is a value.
    #[inline]
    pub fn present(&mut self) -> Result<bool, Error> {
        match self.byte()? {
            0 => Ok(false),
            2 => Ok(true),
            _ => Err(self.corrupt("a union branch that is neither null nor the value")),
        }
    }

    /// The items of an array.
    pub fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, Error>) -> Result<Vec<T>, Error> {
        let mut list = Vec::new();
        self.items(|reader| {
            list.push(item(reader)?);
            Ok(())
        })?;
        Ok(list)
    }

    /// Calls `item` for each item of an array or map, in blocks as Avro writes them.
    pub fn items(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        loop {
            let count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            if count < 0 {
                self.unsigned()?; // the block's size in bytes, for readers that skip
            }
            for _ in 0..count.unsigned_abs() {
                item(self)?;
            }
        }
    }
}

/// Writes an array or map of known length.
pub fn put_items<T>(out: &mut Vec<u8>, items: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    if !items.is_empty() {
        put_long(out, items.len() as i64);
        for item in items {
            put(out, item);
        }
    }
    out.push(0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn longs_round_trip(number: i64) {
            let mut out = Vec::new();
            put_long(&mut out, number);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.long().unwrap(), number);
            reader.finish().unwrap();
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            let _ = reader.items(|r| r.string().map(|_| ()));
            let _ = Reader::new(&bytes).long();
            let _ = frame(&bytes);
        }
    }
}
