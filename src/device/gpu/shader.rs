//! Kernels as files: include, knobs, reflection.
//!
//! A kernel is valid WGSL as it stands in `kernels/`. Before it is compiled, `//!include lib/x.wgsl` lines
//! are replaced by that file, and lines that end in `// knob` may be given another value; an include that
//! ends in `// knob NAME` may be given another file. Tensors that a program keeps in 16 bits become arrays of
//! f16, or of words that hold two numbers ([`Expanded::in_halves`]). Bindings and parameters are stated
//! once, in WGSL, and read from there by reflection.

mod halves;
mod layout;

use crate::error::{Error, Result};

/// A value for a `const NAME ... = value; // knob` or `alias NAME = value; // knob` line, or a file for an
/// `//!include FILE // knob NAME` line.
pub type Knob = (&'static str, &'static str);

/// A file in `kernels/` and every set of knobs that the program compiles it with.
#[derive(Debug)]
pub struct Kernel {
    /// File name without ending, with its folder in `kernels/` if it has one.
    pub name: &'static str,
    /// Its text.
    pub source: &'static str,
    /// The sets in use; the first is the default. An empty list means that the file is used as it stands.
    pub knob_sets: &'static [&'static [Knob]],
}

/// `kernel!("swap")`, `kernel!("concat", pack::KNOBS)` or `kernel!("name", [[("TILE", "4u")], [("TILE",
/// "8u")]])`.
#[macro_export]
macro_rules! kernel {
    ($name:literal) => { $crate::kernel!($name, [[]]) };
    ($name:literal, [$([$($knob:expr),* $(,)?]),+ $(,)?]) => {
        $crate::kernel!($name, &[$(&[$($knob),*]),+])
    };
    ($name:literal, $sets:expr) => {
        $crate::device::gpu::shader::Kernel {
            name: $name,
            source: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $name, ".wgsl")),
            knob_sets: $sets,
        }
    };
}

macro_rules! library {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $name)))),+]
    };
}

/// The files that kernels may include.
pub const LIBRARY: &[(&str, &str)] = library![
    "lib/activation.wgsl",
    "lib/grid.wgsl",
    "lib/philox.wgsl",
    "lib/reduce.wgsl",
    "lib/reduce_subgroup.wgsl",
    "lib/state.wgsl",
    "lib/trig.wgsl",
    "lib/wide.wgsl",
    "product/exchange.wgsl",
    "product/load_conv.wgsl",
    "product/load_conv_weights.wgsl",
    "product/load_dense.wgsl",
    "product/matrices_16.wgsl",
    "product/matrices_8.wgsl",
    "product/product.wgsl",
    "product/quads.wgsl",
    "product/ragged.wgsl",
    "product/singles.wgsl",
    "product/through_matrices.wgsl",
    "product/through_subgroup.wgsl",
    "product/through_workgroup.wgsl"
];

/// Features of the device that change the text of a kernel. The default runs everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dialect {
    /// Parameters as immediates instead of a uniform buffer.
    pub immediates: bool,
    /// Reductions through subgroup operations.
    pub subgroups: bool,
    /// Tensors of 16 bits as arrays of f16 instead of words that hold two numbers.
    pub f16: bool,
}

/// The text to compile, and the origin of each of its lines.
pub struct Expanded {
    /// WGSL without includes.
    pub text: String,
    lines: Vec<(String, usize)>,
}

/// Beginning of the line that declares the parameters.
const UNIFORM: &str = "@group(0) @binding(0) var<uniform> ";

impl Kernel {
    /// Includes the library files, sets the knobs, and picks the dialect.
    ///
    /// # Panics
    /// When an include or a knob does not exist: a mistake in this program, which the tests find.
    pub fn expand(&self, knobs: &[Knob], dialect: Dialect) -> Expanded {
        let mut out = Expanded { text: String::new(), lines: Vec::new() };
        // No `enable subgroups;`: naga 30 refuses the directive, and takes the operations by the device's
        // features.
        let mut unused: Vec<&str> = knobs.iter().map(|k| k.0).collect();
        let mut included = Vec::new();
        out.file(&format!("{}.wgsl", self.name), self.source, knobs, dialect, &mut unused, &mut included);
        assert!(unused.is_empty(), "kernels/{}.wgsl has no knob called {}", self.name, unused.join(", "));
        out
    }
}

impl Expanded {
    fn file(
        &mut self,
        file: &str,
        source: &str,
        knobs: &[Knob],
        dialect: Dialect,
        unused: &mut Vec<&str>,
        included: &mut Vec<&'static str>,
    ) {
        for (index, line) in source.lines().enumerate() {
            let mut text = line.to_owned();
            if let Some(wanted) = line.strip_prefix("//!include ") {
                let (default, knob) = wanted.split_once("// knob").unwrap_or((wanted, ""));
                let chosen = knobs.iter().find(|(name, _)| *name == knob.trim());
                unused.retain(|name| *name != knob.trim());
                let wanted = match chosen.map_or(default.trim(), |(_, file)| file) {
                    "lib/reduce.wgsl" if dialect.subgroups => "lib/reduce_subgroup.wgsl",
                    name => name,
                };
                let (name, text) = LIBRARY
                    .iter()
                    .find(|(name, _)| *name == wanted)
                    .unwrap_or_else(|| panic!("kernels/{file}:{}: no kernels/{wanted}", index + 1));
                if !included.contains(name) {
                    included.push(name);
                    self.file(name, text, knobs, dialect, unused, included);
                }
                continue;
            } else if line.starts_with("enable ") {
                // Directives stand before all else.
                self.text.insert_str(0, &format!("{line} "));
                text.clear();
            } else if let Some(declared) = line.strip_prefix(UNIFORM).filter(|_| dialect.immediates) {
                text = format!("var<immediate> {declared}");
            } else if line.contains("// knob") {
                let name = line.split(['=', ':']).next().and_then(|head| head.split_whitespace().last());
                if let Some((knob, value)) = knobs.iter().find(|(knob, _)| Some(*knob) == name) {
                    text = format!("{}= {value};", line.split('=').next().unwrap_or_default());
                    unused.retain(|u| u != knob);
                }
            }
            self.text += &text;
            self.text.push('\n');
            self.lines.push((file.to_owned(), index + 1));
        }
    }

    /// `kernels/<file>:<line>` of a 1-based line of the expanded text.
    pub fn place(&self, line: usize) -> String {
        match self.lines.get(line.saturating_sub(1)) {
            Some((file, line)) => format!("kernels/{file}:{line}"),
            None => format!("kernels/{}", self.lines.first().map_or("?", |l| l.0.as_str())),
        }
    }

    /// The same kernel with the storage variables called `names`, arrays of f32, in 16 bits.
    ///
    /// # Errors
    /// The message begins with the kernel's file.
    pub fn in_halves(self, names: &[&str], dialect: Dialect) -> Result<Expanded> {
        if names.is_empty() {
            return Ok(self);
        }
        let layout = if dialect.f16 { layout::Layout::Native } else { layout::Layout::Packed };
        let text = halves::in_halves(&self.text, &self.parse()?.naga, names, layout);
        let text = text.map_err(|e| Error::new(format!("{}: in 16 bits: {e}", self.place(0))))?;
        Ok(Expanded { text, ..self })
    }

    /// Parses and validates the kernel.
    ///
    /// # Errors
    /// The message begins with `kernels/<file>:<line>`.
    pub fn parse(&self) -> Result<Module> {
        let at = |location: Option<naga::SourceLocation>, message: &str| {
            let line = location.map_or(0, |l| l.line_number as usize);
            Error::new(format!("{}: {message}", self.place(line)))
        };
        let module =
            naga::front::wgsl::parse_str(&self.text).map_err(|e| at(e.location(&self.text), e.message()))?;
        let capabilities = naga::valid::Capabilities::all();
        let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
        let info = validator.validate(&module).map_err(|e| {
            let first: &dyn std::error::Error = e.as_inner();
            let causes = std::iter::successors(Some(first), |e| e.source()).map(ToString::to_string);
            at(e.location(&self.text), &causes.collect::<Vec<_>>().join(": "))
        })?;
        Ok(Module { naga: module, info })
    }
}

/// A storage binding of an entry point.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Name of the variable.
    pub name: String,
    /// Number of the binding in group 0.
    pub index: u32,
    /// `read_write` access.
    pub writable: bool,
}

/// The bindings and parameters of an entry point.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    /// The storage bindings that it uses.
    pub bindings: Vec<Binding>,
    /// Names and byte offsets of the fields of `Params`; empty without parameters.
    pub params: Vec<(String, u32)>,
    /// Size of `Params` in bytes.
    pub params_size: u32,
    /// Threads in each dimension.
    pub workgroup_size: [u32; 3],
    /// Workgroup memory that it uses.
    pub workgroup_bytes: u32,
}

impl Interface {
    /// The bytes of `Params`. `at`: the entry point, for messages.
    ///
    /// # Panics
    /// When a parameter is missing, or is none of the kernel's.
    pub(crate) fn pack(&self, params: &[(&'static str, u32)], at: &str) -> Vec<u8> {
        for (name, _) in params {
            assert!(self.params.iter().any(|(n, _)| n == name), "{at}: no parameter called `{name}`");
        }
        let mut bytes = vec![0; self.params_size as usize];
        for (name, offset) in &self.params {
            let word = params.iter().find(|(n, _)| n == name).map(|(_, word)| word.to_ne_bytes());
            let word = word.unwrap_or_else(|| panic!("{at}: parameter `{name}` was not given"));
            bytes[*offset as usize..*offset as usize + 4].copy_from_slice(&word);
        }
        bytes
    }

    /// What is bound to each of its bindings, in their order.
    ///
    /// # Panics
    /// When one is missing, or is none of the kernel's.
    pub(crate) fn bound<'a, R>(&self, given: &'a [(&'static str, R)], at: &str) -> Vec<&'a R> {
        for (name, _) in given {
            assert!(self.bindings.iter().any(|b| b.name == *name), "{at} does not use `{name}`");
        }
        let of = |binding: &Binding| match given.iter().find(|(name, _)| *name == binding.name) {
            Some((_, range)) => range,
            None => panic!("{at}: nothing bound to `{}`", binding.name),
        };
        self.bindings.iter().map(of).collect()
    }
}

/// A parsed and validated kernel.
pub struct Module {
    /// The syntax tree.
    pub naga: naga::Module,
    /// The uses of each entry point.
    pub info: naga::valid::ModuleInfo,
}

impl Module {
    /// The interface of the entry point called `entry`, if there is one.
    pub fn interface(&self, entry: &str) -> Option<Interface> {
        let (index, point) =
            self.naga.entry_points.iter().enumerate().find(|(_, point)| point.name == entry)?;
        let used = self.info.get_entry_point(index);
        let mut interface = Interface { workgroup_size: point.workgroup_size, ..Interface::default() };
        for (handle, variable) in self.naga.global_variables.iter() {
            if used[handle].is_empty() {
                continue;
            }
            match variable.space {
                naga::AddressSpace::Storage { access } => interface.bindings.push(Binding {
                    name: variable.name.clone().unwrap_or_default(),
                    index: variable.binding.as_ref().map_or(0, |b| b.binding),
                    writable: access.contains(naga::StorageAccess::STORE),
                }),
                naga::AddressSpace::Uniform | naga::AddressSpace::Immediate => {
                    if let naga::TypeInner::Struct { members, span } = &self.naga.types[variable.ty].inner {
                        let field = |m: &naga::StructMember| (m.name.clone().unwrap_or_default(), m.offset);
                        interface.params = members.iter().map(field).collect();
                        interface.params_size = *span;
                    }
                }
                naga::AddressSpace::WorkGroup => {
                    let bytes = self.naga.types[variable.ty].inner.try_size(self.naga.to_ctx());
                    let bytes = bytes.and_then(|bytes| interface.workgroup_bytes.checked_add(bytes));
                    interface.workgroup_bytes = bytes.unwrap_or(u32::MAX);
                }
                _ => {}
            }
        }
        Some(interface)
    }
}
