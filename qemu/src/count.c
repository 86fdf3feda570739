/* Counts executed guest instructions into a mapped file. See file_counter.rs.
 *
 * INTERFACE is the version of QEMU's plugin interface: 1 up to QEMU 8, and 2 or more since 9. The
 * first adds to any number of ours. The later ones add to numbers of QEMU, one for each processor,
 * so a processor that has collected PUBLISH_AT, or has nothing to do, moves its number to ours. */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The part of QEMU's plugin interface that is used here. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*tb_cb_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, tb_cb_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

__attribute__((visibility("default"))) int qemu_plugin_version = INTERFACE;

static uint64_t *count;

#if INTERFACE == 1

extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op,
                                                     void *, uint64_t);

static int prepare(qemu_plugin_id_t id)
{
    (void)id;
    return 0;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, count,
                                             qemu_plugin_tb_n_insns(tb));
}

#else

/* Some tens of blocks: seldom enough to cost little, and far below what any figure shows. */
enum { PUBLISH_AT = 256 };

struct qemu_plugin_scoreboard;
typedef struct {
    struct qemu_plugin_scoreboard *score;
    size_t offset;
} qemu_plugin_u64;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_cond { QEMU_PLUGIN_COND_GE = 7 };
typedef void (*vcpu_cb_t)(unsigned int, void *);
typedef void (*idle_cb_t)(qemu_plugin_id_t, unsigned int);
extern void qemu_plugin_register_vcpu_idle_cb(qemu_plugin_id_t, idle_cb_t);
extern struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t);
extern uint64_t qemu_plugin_u64_get(qemu_plugin_u64, unsigned int);
extern void qemu_plugin_u64_set(qemu_plugin_u64, unsigned int, uint64_t);
extern void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *,
                                                              enum qemu_plugin_op, qemu_plugin_u64,
                                                              uint64_t);
extern void qemu_plugin_register_vcpu_tb_exec_cond_cb(struct qemu_plugin_tb *, vcpu_cb_t,
                                                      enum qemu_plugin_cb_flags,
                                                      enum qemu_plugin_cond, qemu_plugin_u64,
                                                      uint64_t, void *);

static qemu_plugin_u64 collected;

static void publish(unsigned int processor, void *data)
{
    (void)data;
    __atomic_fetch_add(count, qemu_plugin_u64_get(collected, processor), __ATOMIC_RELAXED);
    qemu_plugin_u64_set(collected, processor, 0);
}

static void idle(qemu_plugin_id_t id, unsigned int processor)
{
    (void)id;
    publish(processor, NULL);
}

static int prepare(qemu_plugin_id_t id)
{
    qemu_plugin_register_vcpu_idle_cb(id, idle);
    collected.score = qemu_plugin_scoreboard_new(sizeof(uint64_t));
    return collected.score ? 0 : -1;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, QEMU_PLUGIN_INLINE_ADD_U64, collected,
                                                      qemu_plugin_tb_n_insns(tb));
    qemu_plugin_register_vcpu_tb_exec_cond_cb(tb, publish, QEMU_PLUGIN_CB_NO_REGS,
                                              QEMU_PLUGIN_COND_GE, collected, PUBLISH_AT, NULL);
}

#endif

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id,
                                                               const void *info, int argc,
                                                               char **argv)
{
    const char *path = NULL;
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            path = argv[i] + 4;
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return -1;
    count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (count == MAP_FAILED || prepare(id) != 0)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
