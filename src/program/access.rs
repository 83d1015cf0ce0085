//! Reading and writing the stores and tensors of a program.

use half::f16;

use super::Program;
use super::place::Place;
use crate::device::Buffer;
use crate::error::Result;
use crate::tape::Tensor;

/// The numbers of words that hold two of 16 bits each.
pub(super) fn widened(words: &[u32]) -> Vec<f32> {
    bytemuck::cast_slice(words).iter().map(|&bits| f16::from_bits(bits).to_f32()).collect()
}

impl Program {
    #[track_caller]
    fn store_of(&self, name: &str) -> &Place {
        self.placement.stores.get(name).unwrap_or_else(|| {
            let known: Vec<&str> = self.placement.stores.keys().map(String::as_str).collect();
            panic!("the program has no store called {name}; it has {}", known.join(", "))
        })
    }

    /// Memory of a store that this program uses.
    ///
    /// # Panics
    /// When it uses none of that name.
    #[track_caller]
    pub fn store(&self, name: &str) -> &Buffer {
        &self.store_of(name).buffer
    }

    /// Elements of a store that this program uses, from its beginning.
    ///
    /// # Panics
    /// When it uses none of that name.
    #[track_caller]
    pub fn elements(&self, store: &str) -> usize {
        self.store_of(store).bytes / 4
    }

    /// Writes all elements of a store that this program uses: numbers or words of 4 bytes.
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// When the program has no such store, or `data` has not its length.
    #[track_caller]
    pub fn write<T: bytemuck::Pod>(&self, store: &str, data: &[T]) -> Result<()> {
        let (data, used) = (bytemuck::cast_slice::<T, u8>(data), self.elements(store));
        let given = data.len() / 4;
        assert!(given == used, "write: {given} elements for store {store}, which has {used}");
        self.device.write(self.store(store), 0, data)
    }

    /// Writes some elements of a store, from element `first` on.
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// When the program has no such store, or not so many elements of it.
    #[track_caller]
    pub fn write_at<T: bytemuck::Pod>(&self, store: &str, first: usize, data: &[T]) -> Result<()> {
        let (data, used) = (bytemuck::cast_slice::<T, u8>(data), self.elements(store));
        let given = data.len() / 4;
        assert!(
            first + given <= used,
            "write: {given} elements from {first} on of store {store}, which has {used}"
        );
        self.device.write(self.store(store), first * 4, data)
    }

    /// Reads a tensor: a stored one, an output, or any of an unshared program.
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// When no launch touches the tensor.
    #[track_caller]
    pub fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let Some(place) = self.placement.place(tensor.id()) else {
            panic!("nothing in the program touches {tensor:?}")
        };
        let mut out = self.read_place(place)?;
        out.truncate(tensor.elements());
        Ok(out)
    }

    /// The numbers of a place, those that fill its last word included.
    pub(super) fn read_place(&self, place: &Place) -> Result<Vec<f32>> {
        let mut bytes = vec![0_u32; place.bytes / 4];
        self.device.read(&place.buffer, place.offset, bytemuck::cast_slice_mut(&mut bytes))?;
        Ok(if place.half { widened(&bytes) } else { bytemuck::cast_vec(bytes) })
    }
}
