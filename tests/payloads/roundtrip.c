/* Drives the first disk by hand: reads sector 0 and prints it, writes it back as sector 1 with every byte
 * increased by one, flushes. */
#include "payload.h"

static u8 queue[4096] __attribute__((aligned(4096)));
static u8 data[512];
static struct { u32 kind, reserved; u64 sector; } header;
static volatile u8 status;
static u16 submitted;

static u8 request(u64 notify, u32 kind, u64 sector, int data_flags)
{
    u64 ring = (u64)queue;
    header.kind = kind, header.sector = sector, status = 0xff;
    descriptor(ring, 0, (u64)&header, 16, 1, 1);
    descriptor(ring, 1, (u64)data, 512, data_flags | 1, 2);
    descriptor(ring, 2, (u64)&status, 1, 2, 0);
    if (data_flags < 0)
        descriptor(ring, 0, (u64)&header, 16, 1, 2);
    write16(AVAILABLE(ring) + 4 + 2 * (submitted % 8), 0);
    write16(AVAILABLE(ring) + 2, ++submitted);
    write16(notify, 0);
    while (read16(USED(ring) + 2) != submitted)
        ;
    return status;
}

void main(void)
{
    int slot = find_device(BLOCK_DEVICE);
    u64 common = structure(slot, 1), notify = structure(slot, 2);
    if (!slot || !start_device(common, (u64)queue)) {
        print("no disk\n");
        power_off();
    }
    print("read "), print_hex(request(notify, 0, 0, 2), 2), print(": ");
    for (int i = 0; data[i] && i < 512; i++)
        put(data[i]);
    for (int i = 0; i < 512; i++)
        data[i]++;
    print("\nwrite "), print_hex(request(notify, 1, 1, 0), 2);
    print("\nflush "), print_hex(request(notify, 4, 0, -1), 2);
    print("\nbeyond the end "), print_hex(request(notify, 0, 1u << 30, 2), 2);
    print("\n");
    power_off();
}
