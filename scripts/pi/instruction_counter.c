// QEMU TCG plugin: counts the instructions that an AArch64 guest executes, by class, and what they ask of a Cortex-A72's
// pipes.
//
// The guest marks a point by getpriority(0x41544845, tag), which every kernel refuses with EINVAL. At each mark, a line of
// JSON with the counts since the mark before goes to the file named by out=. One guest thread only: the additions are not
// atomic.
//
// Classes follow the A64 encoding groups of the Arm Architecture Reference Manual (DDI 0487, section C4.1). Pipe slots are
// those of LLVM's scheduling model CortexA57Model, which LLVM uses for the Cortex-A72 too; `llvm-mca -mcpu=cortex-a72`
// prints them. F0 alone multiplies integers and divides, F1 alone shifts with rounding and accumulates pairs, and most
// 128-bit float instructions take two slots of either.
//
// build: gcc -O2 -shared -fPIC instruction_counter.c -o instruction_counter.so
// use:   qemu-aarch64 -cpu cortex-a72 -plugin instruction_counter.so,out=FILE ...
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

// The declarations that are used of QEMU's plugin interface, version 1.
#define EXPORT __attribute__((visibility("default")))
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { INLINE_ADD_U64 = 0 };
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int op, void *counter, uint64_t add);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, unsigned vcpu, int64_t number, uint64_t,
    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
EXPORT int qemu_plugin_version = 1;

#define MARK 0x41544845u
enum { GETPRIORITY = 141 };

enum counter {
    ALL,
    INT_MUL, INT_SIMD, FLOAT, LOAD_STORE, BRANCH, OTHER, // classes; they add up to ALL
    F0, F1, EITHER, LOADS, STORES,                       // pipe slots; EITHER may go to F0 or F1
    NOT_ON_PI,                                           // AES, SHA, PMULL64: in QEMU's Cortex-A72, not in the BCM2711
    COUNTERS
};
static const char *const NAMES[COUNTERS] = {"instructions", "int_mul", "int_simd", "float", "load_store", "branch", "other",
    "f0", "f1", "either", "loads", "stores", "not_on_pi"};
static uint64_t total[COUNTERS], at_last_mark[COUNTERS];
static FILE *out;

static unsigned bits(uint32_t word, int high, int low) { return word >> low & ((2u << (high - low)) - 1); }

static int not_on_pi(uint32_t word) {
    return (word & 0xFFFFCC00u) == 0x4E284800u    // AES
        || (word & 0xFFE08C00u) == 0x5E000000u    // SHA, three registers
        || (word & 0xFFFFCC00u) == 0x5E280800u    // SHA, two registers
        || (word & 0xBFE0FC00u) == 0x0EE0E000u;   // PMULL of 64 bits
}

static void scalar_float(uint32_t word, uint32_t *n) {
    int divide = (word & 0xFF20FC00u) == 0x1E201800u || (word & 0xFF3FFC00u) == 0x1E21C000u; // FDIV, FSQRT
    int copy = (word & 0x5F26FC00u) == 0x1E260000u; // FMOV to or from a general register
    if (copy) {
        n[INT_SIMD]++, n[LOADS]++;
        return;
    }
    n[FLOAT]++;
    if (divide) n[F0] += bits(word, 23, 22) == 1 ? 32 : 17;
    else n[EITHER]++;
    n[LOADS] += !bits(word, 24, 24) && (!bits(word, 21, 21) || bits(word, 15, 10) == 0); // converts by way of a general register
}

// Two sources of one width.
static void three_same(uint32_t word, unsigned width, uint32_t *n) {
    unsigned op = bits(word, 15, 11), u = bits(word, 29, 29), size = bits(word, 23, 22);
    if (op >= 24) {
        int pairwise = u && (op == 26 || op == 24 || op == 30) && !(op == 26 && size & 2);
        n[FLOAT]++;
        if (u && op == 31 && size < 2) n[F0] += (size & 1 ? 32 : 17) * width; // FDIV
        else n[EITHER] += pairwise && width == 2 ? 3 : width;
        return;
    }
    if (op == 18 || op == 19 || op == 22) { // MLA, MLS; MUL; SQDMULH, SQRDMULH
        n[INT_MUL]++, n[F0] += width;
        return;
    }
    n[INT_SIMD]++;
    if (op == 15 || (op >= 9 && op <= 11)) n[F1] += width;       // SABA; saturating or rounding shift by register
    else if (op == 8) n[width == 2 ? F1 : EITHER] += width;      // SSHL
    else n[EITHER] += op == 3 && u && size ? width : 1;          // BSL, BIT, BIF; all that is simple
}

// A result twice as wide as a source, or the other way round.
static void three_different(uint32_t word, uint32_t *n) {
    unsigned op = bits(word, 15, 12);
    if (op >= 8 && op <= 14) n[INT_MUL]++, n[F0]++; // SMLAL, SMLSL, SMULL and their saturating forms, PMULL
    else n[INT_SIMD]++, n[op == 5 ? F1 : EITHER]++; // SABAL; the rest
}

static void two_registers(uint32_t word, unsigned width, uint32_t *n) {
    unsigned op = bits(word, 16, 12), u = bits(word, 29, 29), size = bits(word, 23, 22);
    if (op >= 22 || (op >= 12 && op <= 15 && size & 2)) {
        n[FLOAT]++;
        if (op == 31) n[F0] += (size & 1 ? 32 : 17) * width; // FSQRT
        else if (op == 22 || op == 23) n[EITHER] += 3;       // to a narrower or wider float
        else n[EITHER] += op == 15 ? 1 : width;              // FABS, FNEG; the rest
        return;
    }
    n[INT_SIMD]++;
    n[op == 6 || op == 20 || (op == 18 && u) ? F1 : EITHER]++; // SADALP, SQXTN, SQXTUN; the rest
}

static void across_lanes(uint32_t word, int scalar, uint32_t *n) {
    unsigned op = bits(word, 16, 12);
    if (op >= 12 && op <= 15) n[FLOAT]++, n[EITHER] += scalar ? 1 : 3;
    else n[INT_SIMD]++, n[scalar ? EITHER : F1]++;
}

// Lanes, tables and permutations.
static void moves(uint32_t word, unsigned width, uint32_t *n) {
    unsigned op = bits(word, 14, 11);
    n[INT_SIMD]++;
    if (bits(word, 10, 10)) { // copies
        int from_general = !bits(word, 29, 29) && (op == 1 || op == 3), to_general = !bits(word, 29, 29) && (op == 5 || op == 7);
        n[LOADS] += from_general || to_general;
        n[EITHER] += !to_general;
    } else if (bits(word, 29, 29)) n[EITHER]++; // EXT
    else if (bits(word, 11, 10) == 0) n[EITHER] += width == 2 ? 2 * bits(word, 14, 13) + 3 : bits(word, 14, 13) + 1; // TBL
    else n[EITHER] += bits(word, 13, 12) != 2 && width == 2 ? 3 : 1; // UZP, ZIP; TRN
}

static void shift_or_immediate(uint32_t word, unsigned width, uint32_t *n) {
    unsigned op = bits(word, 15, 11), u = bits(word, 29, 29);
    if (!bits(word, 22, 19)) n[INT_SIMD]++, n[EITHER]++;             // MOVI and the like
    else if (op == 28 || op == 31) n[FLOAT]++, n[EITHER] += width;   // to or from fixed point
    else {
        int accumulates_or_rounds = op == 2 || op == 4 || op == 6 || op == 12 || op == 17 || op == 18 || op == 19 || (op == 16 && u);
        n[INT_SIMD]++, n[accumulates_or_rounds ? F1 : EITHER]++;
    }
}

static void by_element(uint32_t word, unsigned width, uint32_t *n) {
    unsigned op = bits(word, 15, 12), u = bits(word, 29, 29);
    int is_float = op == 1 || op == 5 || op == 9 || (u && (op == 3 || op == 7)), is_long = bits(op, 1, 1);
    if (is_float) n[FLOAT]++, n[EITHER] += width;
    else n[INT_MUL]++, n[F0] += is_long ? 1 : width;
}

static void simd(uint32_t word, uint32_t *n) {
    int scalar = bits(word, 28, 28);
    unsigned width = bits(word, 30, 30) && !scalar ? 2 : 1, low = bits(word, 11, 10);
    n[NOT_ON_PI] += not_on_pi(word);
    if (scalar && !bits(word, 30, 30)) scalar_float(word, n);
    else if (bits(word, 24, 24)) {
        if (low & 1) shift_or_immediate(word, width, n);
        else by_element(word, width, n);
    } else if (bits(word, 21, 21)) {
        if (low & 1) three_same(word, width, n);
        else if (low == 0) three_different(word, n);
        else if (bits(word, 20, 17) == 0) two_registers(word, width, n);
        else if (bits(word, 20, 17) == 8) across_lanes(word, scalar, n);
        else n[FLOAT]++, n[EITHER] += width;                         // half precision, which a Cortex-A72 does not have
    } else if (low & 1 && bits(word, 15, 15)) n[INT_MUL]++, n[F0] += width; // dot products, which it does not have either
    else if (low & 1 && bits(word, 22, 22)) n[FLOAT]++, n[EITHER] += width; // half precision
    else moves(word, width, n);
}

static void load_or_store(uint32_t word, uint32_t *n) {
    unsigned group = bits(word, 29, 27), vector = bits(word, 26, 26), q = bits(word, 30, 30), slots = 1;
    int load = bits(word, 22, 22);
    n[LOAD_STORE]++;
    if (group == 3) load = 1; // literals
    else if (group == 7) {
        load = vector ? load : bits(word, 23, 22) != 0;
        slots = !load && vector && bits(word, 31, 30) == 0 && bits(word, 23, 23) ? 2 : 1; // STR of 128 bits
    } else if (group == 5) { // pairs
        int quad = vector && bits(word, 31, 30) == 2, doubles = bits(word, 31, 31) || (vector && bits(word, 31, 30) == 1);
        slots = load ? (quad ? 2 : 1) : (quad ? 4 : doubles ? 2 : 1);
    } else if (vector && !bits(word, 24, 24)) { // LD1 to LD4, ST1 to ST4 of whole registers
        static const unsigned char REGISTERS[16] = {4, 0, 4, 0, 3, 0, 3, 1, 2, 0, 2};
        unsigned op = bits(word, 15, 12), registers = REGISTERS[op], interleaved = op == 0 || op == 4 || op == 8;
        slots = load ? (q ? registers : (registers + 1) / 2) : registers * (q ? 2 : 1);
        if (interleaved && bits(word, 11, 10) != 3) n[EITHER] += (registers == 2 ? 1 : 2) * (q ? 2 : 1);
    } else if (vector) n[EITHER] += load; // one lane, or one value to all lanes
    n[load ? LOADS : STORES] += slots;
}

static void count(uint32_t word, uint32_t *n) {
    unsigned group = bits(word, 28, 25);
    n[ALL]++;
    if ((group & 5) == 4) load_or_store(word, n);
    else if ((group & 7) == 7) simd(word, n);
    else n[(group & 14) == 10 ? BRANCH : OTHER]++;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    uint32_t n[COUNTERS] = {0};
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        count(word, n);
    }
    for (int k = 0; k < COUNTERS; k++)
        if (n[k]) qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &total[k], n[k]);
}

static void on_syscall(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
    uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)vcpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != GETPRIORITY || (uint32_t)a1 != MARK) return;
    fprintf(out, "{\"tag\": %" PRIu64, a2);
    for (int k = 0; k < COUNTERS; k++) fprintf(out, ", \"%s\": %" PRIu64, NAMES[k], total[k] - at_last_mark[k]);
    fprintf(out, "}\n");
    fflush(out);
    memcpy(at_last_mark, total, sizeof total);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "a");
    if (!out) {
        fprintf(stderr, "instruction_counter: no out=FILE that can be written\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    return 0;
}
