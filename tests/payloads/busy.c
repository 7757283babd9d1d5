/* Says that it is ready, reads the first sector of its first disk and writes it back, once, and sleeps for ever: a guest
 * that has counted something. */
#include "payload.h"

static u8 queue[4096] __attribute__((aligned(4096)));
static u8 data[512];
static struct { u32 kind, reserved; u64 sector; } header;
static volatile u8 status;

enum { READ = 0, WRITE = 1 };

void main(void)
{
    u64 ring = (u64)queue;
    int slot = find_device(BLOCK_DEVICE);
    print("ready\n");
    if (!slot || !start_device(structure(slot, 1), ring)) {
        print("no disk\n");
        power_off();
    }
    for (u16 kind = READ; kind <= WRITE; kind++) {
        header.kind = kind, status = 0xff;
        descriptor(ring, 0, (u64)&header, 16, 1, 1);
        descriptor(ring, 1, (u64)data, 512, kind == READ ? 3 : 1, 2);
        descriptor(ring, 2, (u64)&status, 1, 2, 0);
        write16(AVAILABLE(ring) + 4 + 2 * kind, 0);
        write16(AVAILABLE(ring) + 2, kind + 1);
        write16(structure(slot, 2), 0);
        while (read16(USED(ring) + 2) != kind + 1)
            ;
        if (status) {
            print("failed\n");
            power_off();
        }
    }
    for (;;)
        asm volatile("hlt");
}
