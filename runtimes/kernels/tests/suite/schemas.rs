//! Calls made from the schemas: every kernel takes what its schema says, and refuses whatever deviates from it.

use crate::call::Random;
use densessm_kernels::{
    AttributeValues, Attributes, BoundCall, Described, Error, KernelRegistration, Level, Operand, ResultBuffer, Shape,
    SingleThreaded,
    cpu::{self, CpuKernel},
};
use densessm_proto::{
    DType,
    operators::{self, Arity, AttributeKind, AxisSize, OperandSchema, Repeat, SCHEMAS, Schema},
};
use std::collections::BTreeMap;

/// Values for the attributes, and sizes for the dimensions, of a schema.
pub(crate) struct Choice {
    schema: &'static Schema,
    sizes: BTreeMap<&'static str, usize>,
    repetitions: usize,
    /// Whether optional operands and groups are present.
    optional: bool,
}

impl Choice {
    fn random(schema: &'static Schema, random: &mut Random, optional: bool) -> Self {
        let mut size = |minimum: usize| minimum.max(1) + (random.next(2.0).abs() * 2.0) as usize;
        let sizes = schema.dimensions.iter().map(|dimension| (dimension.name, size(dimension.minimum))).collect();
        Self { schema, sizes, repetitions: size(1), optional }
    }

    fn axis(&self, axis: &AxisSize) -> usize {
        let product: usize = axis.dimensions.iter().map(|name| self.sizes[name]).product();
        (axis.factor * product).checked_add_signed(axis.offset).unwrap()
    }

    /// The operands of a call, in order.
    fn operands(&self) -> Vec<Place> {
        let place =
            |name, schema: &'static OperandSchema| Place { name, schema, required: schema.arity == Arity::Required };
        let fixed = self.schema.operands.iter().map(|operand| place(operand.name.to_owned(), operand));
        let groups = self.schema.groups.iter().filter(|group| group.arity == Arity::Required || self.optional);
        let groups = groups.flat_map(|group| {
            let required = group.arity == Arity::Required;
            let one = move |i| {
                group.operands.iter().map(move |schema| Place { name: group.operand_name(i, schema), schema, required })
            };
            (0..self.repetitions).flat_map(one)
        });
        fixed.chain(groups).collect()
    }

    /// How many axes of the operands of a call have a size that depends on a dimension.
    fn uses(&self, dimension: &str) -> usize {
        let present = self.operands().into_iter().filter(|place| place.required || self.optional);
        let axes = present.flat_map(|place| place.schema.shape);
        let attributes = self.schema.attributes.iter().filter(|attribute| attribute.name == dimension).count();
        attributes + axes.filter(|axis| axis.dimensions.contains(&dimension)).count()
    }

    fn values(&self) -> Vec<Values> {
        let mut random = Random(3);
        self.operands()
            .into_iter()
            .map(|Place { schema: operand, .. }| {
                let shape: Vec<usize> = operand.shape.iter().map(|axis| self.axis(axis)).collect();
                let elements = shape.iter().product();
                let shape = Shape::new(&shape).unwrap();
                match operand.dtype.with(DType::F32) {
                    _ if operand.arity == Arity::Optional && !self.optional => Values::Absent,
                    DType::I32 => Values::I32(shape, vec![1; elements]),
                    _ => Values::F32(shape, (0..elements).map(|_| random.next(1.0)).collect()),
                }
            })
            .collect()
    }
}

impl Attributes for Choice {
    fn integer(&self, name: &str) -> Option<i64> {
        self.schema.attribute(name)?;
        let repeats = |repeat| matches!(repeat, Repeat::Attribute(attribute) if attribute == name);
        let repeats = self.schema.groups.iter().any(|group| repeats(group.repeat));
        Some(if repeats { self.repetitions } else { self.sizes[name] } as i64)
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.schema.attribute(name).map(|_| 1e-6)
    }
}

/// The place of an operand in a call.
struct Place {
    name: String,
    schema: &'static OperandSchema,
    /// Whether a call without it is invalid.
    required: bool,
}

#[derive(Clone)]
enum Values {
    Absent,
    F32(Shape, Vec<f32>),
    I32(Shape, Vec<i32>),
}

impl Values {
    fn operand(&self) -> Operand<'_> {
        match self {
            Self::Absent => Operand::Absent,
            Self::F32(shape, values) => Operand::F32(*shape, values),
            Self::I32(shape, values) => Operand::I32(*shape, values),
        }
    }

    /// The same number of elements, of another type.
    fn mistyped(&self) -> Self {
        match self {
            Self::Absent => Self::Absent,
            Self::F32(shape, values) => Self::I32(*shape, vec![0; values.len()]),
            Self::I32(shape, values) => Self::F32(*shape, vec![0.0; values.len()]),
        }
    }

    /// With one axis longer by one.
    fn misshapen(&self, axis: usize) -> Self {
        let mut sizes = self.operand().shape().unwrap().sizes().to_vec();
        sizes[axis] += 1;
        self.reshaped(&sizes)
    }

    /// With one more axis, of size 1.
    fn misranked(&self) -> Self {
        let sizes = [self.operand().shape().unwrap().sizes(), &[1]].concat();
        match Shape::new(&sizes) {
            Some(_) => self.reshaped(&sizes),
            None => self.reshaped(&sizes[1..]),
        }
    }

    fn reshaped(&self, sizes: &[usize]) -> Self {
        let shape = Shape::new(sizes).unwrap();
        match self {
            Self::Absent => Self::Absent,
            Self::F32(..) => Self::F32(shape, vec![0.5; shape.elements()]),
            Self::I32(..) => Self::I32(shape, vec![1; shape.elements()]),
        }
    }
}

/// Runs a kernel. Returns its results.
fn run(kernel: CpuKernel, choice: &Choice, values: &[Values]) -> Result<Vec<Vec<f32>>, Error> {
    let operands: Vec<Operand<'_>> = values.iter().map(Values::operand).collect();
    let kernel = kernel.prepare(choice, &Level::best())?;
    let call = kernel.signature().bind(&operands)?;
    let results = 0..kernel.signature().schema().results.len();
    let mut results: Vec<Vec<f32>> =
        results.map(|i| vec![f32::NAN; call.result_shape(i).unwrap().elements()]).collect();
    let mut buffers: Vec<_> = results.iter_mut().map(|values| ResultBuffer::F32(values)).collect();
    kernel.compute(&call, &mut buffers, &SingleThreaded)?;
    Ok(results)
}

fn choices() -> impl Iterator<Item = (CpuKernel, Choice)> {
    let mut random = Random(17);
    let rounds = (0..12).flat_map(|round| cpu::KERNELS.map(|kernel| (kernel, round % 2 == 0)));
    rounds.map(move |(kernel, optional)| (kernel, Choice::random(kernel.schema(), &mut random, optional)))
}

#[test]
fn every_operator_has_a_kernel() {
    let registered: Vec<&str> = cpu::KERNELS.iter().map(|kernel| kernel.schema().name).collect();
    let names: Vec<&str> = SCHEMAS.iter().map(|schema| schema.name).collect();
    assert_eq!(registered, names);
}

#[test]
fn what_the_schema_says_is_computed() {
    for (kernel, choice) in choices() {
        let results = run(kernel, &choice, &choice.values()).unwrap_or_else(|error| panic!("{kernel:?}: {error}"));
        let written = results.iter().flatten().all(|x| x.is_finite());
        assert!(written, "{kernel:?}: a result was not written");
    }
}

#[test]
fn an_operand_that_is_dropped_mistyped_or_misshapen_is_named() {
    for (kernel, choice) in choices() {
        let good = choice.values();
        for (position, Place { name, schema, .. }) in choice.operands().into_iter().enumerate() {
            if matches!(good[position], Values::Absent) {
                continue;
            }
            let refused = |what: &str, wrong: Values| {
                let mut values = good.clone();
                values[position] = wrong;
                let error = run(kernel, &choice, &values).expect_err(&format!("{kernel:?}: {name} {what}")).to_string();
                // Where the operand determines a dimension, another operand that has the dimension is named.
                let named = error.starts_with(&format!("{name}: "))
                    || what == "misshapen"
                        && choice.operands().iter().any(|other| error.starts_with(&format!("{}: ", other.name)));
                assert!(named, "{kernel:?}: {name} {what}: {error}");
            };
            if schema.arity == Arity::Required {
                refused("dropped", Values::Absent);
            }
            refused("mistyped", good[position].mistyped());
            refused("misranked", good[position].misranked());
            for (axis, size) in schema.shape.iter().enumerate() {
                // A dimension that occurs nowhere else may have any size.
                if matches!(size, AxisSize { factor: 1, dimensions: [only], offset: 0 } if choice.uses(only) == 1) {
                    continue;
                }
                refused("misshapen", good[position].misshapen(axis));
            }
        }
    }
}

#[test]
fn an_operand_too_few_or_too_many_is_refused() {
    for (kernel, choice) in choices() {
        let good = choice.values();
        let required = choice.operands().iter().rposition(|place| place.required).unwrap();
        let ends_in_group = !kernel.schema().groups.is_empty();
        if !matches!(kernel.schema().groups, [group] if matches!(group.repeat, Repeat::Rest { .. })) {
            run(kernel, &choice, &good[..required]).expect_err(&format!("{kernel:?}: the last one is missing"));
            let more = [&good[..], &[good[0].clone()]].concat();
            let error = run(kernel, &choice, &more).expect_err(&format!("{kernel:?}: one too many"));
            assert!(ends_in_group || error.to_string().starts_with("operands: expected "), "{kernel:?}: {error}");
        }
    }
}

#[test]
fn an_attribute_that_is_missing_or_out_of_range_is_named() {
    struct Without<'a>(&'a Choice, &'static str);
    impl Attributes for Without<'_> {
        fn integer(&self, name: &str) -> Option<i64> {
            self.0.integer(name).filter(|_| name != self.1)
        }
        fn float(&self, name: &str) -> Option<f32> {
            self.0.float(name).filter(|_| name != self.1)
        }
    }
    struct OutOfRange<'a>(&'a Choice, &'static str);
    impl Attributes for OutOfRange<'_> {
        fn integer(&self, name: &str) -> Option<i64> {
            if name == self.1 { Some(-1) } else { self.0.integer(name) }
        }
        fn float(&self, name: &str) -> Option<f32> {
            if name == self.1 { Some(f32::NAN) } else { self.0.float(name) }
        }
    }
    for (kernel, choice) in choices() {
        for attribute in kernel.schema().attributes {
            let kind = match attribute.kind {
                AttributeKind::Int { .. } => "integer",
                AttributeKind::Float { .. } => "float",
            };
            for source in [&Without(&choice, attribute.name) as &dyn Attributes, &OutOfRange(&choice, attribute.name)] {
                let error = kernel.prepare(source, &Level::best()).unwrap_err().to_string();
                assert!(error.starts_with(attribute.name) && error.contains(kind), "{error}");
            }
        }
    }
}

/// An operand in the memory of some device: what is checked needs no access to its elements.
#[derive(Clone, Copy, Debug)]
struct DeviceOperand {
    address: u64,
    dtype: DType,
    shape: Shape,
}

impl Described for DeviceOperand {
    fn describe(&self) -> Option<(DType, Shape)> {
        Some((self.dtype, self.shape))
    }

    fn is_complete(&self) -> bool {
        true
    }
}

trait DeviceKernel {
    fn launch(&self, call: &BoundCall<'_, DeviceOperand>) -> u64;
}

struct Convolution;

impl DeviceKernel for Convolution {
    fn launch(&self, call: &BoundCall<'_, DeviceOperand>) -> u64 {
        const SCHEMA: &Schema = &operators::CAUSAL_CONV;
        call.operand(densessm_proto::position!(SCHEMA, operand "weight")).map_or(0, |weight| weight.address)
    }
}

#[test]
fn kernels_of_another_device_and_type_register_against_the_same_schema() {
    let make = |_: &AttributeValues, _: &()| Ok(Box::new(Convolution) as Box<dyn DeviceKernel>);
    let registration = KernelRegistration::new(&operators::CAUSAL_CONV, DType::F16, make);
    let choice = Choice::random(&operators::CAUSAL_CONV, &mut Random(1), true);
    let kernel = registration.prepare(&choice, &()).unwrap();
    let mut operands: Vec<DeviceOperand> = choice
        .operands()
        .into_iter()
        .enumerate()
        .map(|(address, Place { schema: operand, .. })| DeviceOperand {
            address: 0x1000 + address as u64,
            dtype: registration.dtype(operand.dtype),
            shape: Shape::new(&operand.shape.iter().map(|axis| choice.axis(axis)).collect::<Vec<_>>()).unwrap(),
        })
        .collect();
    assert_eq!(operands[0].dtype, DType::F16);
    assert_eq!(kernel.kernel().launch(&kernel.signature().bind(&operands).unwrap()), 0x1001);
    operands[0].dtype = DType::F32;
    assert_eq!(kernel.signature().bind(&operands).unwrap_err().to_string(), "u: expected fp16, got fp32");
}

/// A copy of a schema whose operands are others.
fn altered(schema: &'static Schema, operands: Vec<OperandSchema>) -> &'static Schema {
    Box::leak(Box::new(Schema { operands: Vec::leak(operands), ..*schema }))
}

#[test]
fn a_kernel_refuses_calls_by_a_copy_of_its_schema_that_lacks_an_operand_or_has_two_unlike_ones_swapped() {
    let mut random = Random(5);
    for kernel in cpu::KERNELS {
        let schema = kernel.schema();
        // Sizes that are all different, so that operands of other dimensions have other shapes.
        let mut choice = Choice::random(schema, &mut random, true);
        for (i, size) in choice.sizes.values_mut().enumerate() {
            *size = [3, 5, 7, 11, 13][i];
        }
        for position in 0..schema.operands.len() {
            let mut fewer = schema.operands.to_vec();
            let removed = fewer.remove(position);
            // A call without an optional operand that nothing follows is a valid one.
            if removed.arity == Arity::Optional && position == fewer.len() && schema.groups.is_empty() {
                continue;
            }
            let call = Choice { schema: altered(schema, fewer), sizes: choice.sizes.clone(), ..choice };
            run(kernel, &choice, &call.values()).expect_err(&format!("{kernel:?} without operand {position}"));
        }
        for (left, right) in (0..schema.operands.len()).flat_map(|left| (0..left).map(move |right| (left, right))) {
            let mut swapped = schema.operands.to_vec();
            swapped.swap(left, right);
            if swapped[left].shape == swapped[right].shape && swapped[left].dtype == swapped[right].dtype {
                continue;
            }
            let call = Choice { schema: altered(schema, swapped), sizes: choice.sizes.clone(), ..choice };
            run(kernel, &choice, &call.values()).expect_err(&format!("{kernel:?}: {left} and {right} swapped"));
        }
    }
}
