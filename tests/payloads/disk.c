/* Drives disks as it is told, byte by byte:
 *   dNS  makes the disk in slot 'A' + S number N (0 to 3) and the one that is used      uN  uses number N
 *   wBC  fills block 'a' + B with C          rB  says what block B is filled with       f   flushes
 *   z    says how many sectors there are     p   power off                              R   reset
 *   nX   writes a sequence, from number X (16 digits) on, and says each that a flush has covered: F and the number
 *   t    writes blocks all over 80 MiB until it is told something else; says how many, and of the clock's ticks how many
 *        the longest write took, and all of them
 *   s    writes a number to disk 0, then to disk 1, then the next one, until it is told something else
 * Answers are lines that begin with the status of the request. */
#include "payload.h"

#define SECTOR 512
#define WINDOW 256 /* sectors */

/* Where the sequence goes: the beginning, around the ends of two regions of 32 MiB, and the end of 80 MiB. */
static const u32 windows[4] = { 0, 65536 - 128, 131072 - 128, 163840 - WINDOW };

static struct disk {
    u8 queue[4096] __attribute__((aligned(4096)));
    u64 notify, device;
    u16 submitted;
} disks[4];
static struct disk *disk = disks;
static u64 data[8 * SECTOR / 8];
static struct { u32 kind, reserved; u64 sector; } header;
static struct { u64 sector; u32 count, flags; } zeroes;
static volatile u8 status;

enum { READ = 0, WRITE = 1, FLUSH = 4, WRITE_ZEROES = 13 };

static u8 request(u32 kind, u64 sector, u64 address, u32 length)
{
    u64 ring = (u64)disk->queue;
    header.kind = kind, header.sector = sector, status = 0xff;
    descriptor(ring, 0, (u64)&header, 16, 1, length ? 1 : 2);
    descriptor(ring, 1, address, length, kind == READ ? 3 : 1, 2);
    descriptor(ring, 2, (u64)&status, 1, 2, 0);
    write16(AVAILABLE(ring) + 4 + 2 * (disk->submitted % 8), 0);
    write16(AVAILABLE(ring) + 2, ++disk->submitted);
    write16(disk->notify, 0);
    while (read16(USED(ring) + 2) != disk->submitted)
        ;
    return status;
}

static u8 flush(void) { return request(FLUSH, 0, 0, 0); }

static int start(int slot)
{
    u64 common = structure(slot, 1);
    disk->notify = structure(slot, 2), disk->device = structure(slot, 4), disk->submitted = 0;
    for (int i = 0; i < 4096; i++)
        disk->queue[i] = 0;
    /* FLUSH and WRITE_ZEROES */
    return common && start_device_with(common, (u64)disk->queue, 1 << 9 | 1 << 14);
}

static u64 mix(u64 n)
{
    u64 x = n * 0x9e3779b97f4a7c15ul;
    x ^= x >> 32, x *= 0x9e3779b97f4a7c15ul;
    return x ^ x >> 29;
}

static u8 step(u64 n, int *is_flushed)
{
    u64 x = mix(n);
    u32 first = x >> 2 & 255, count = 8;
    if (x >> 10 & 1)
        first &= ~7u;
    else
        count = 1 + (x >> 11 & 7);
    if (first + count > WINDOW)
        first = WINDOW - 8;
    first += windows[x & 3];
    *is_flushed = (x >> 18 & 3) == 0;
    if ((x >> 14 & 15) == 0) {
        zeroes.sector = first, zeroes.count = count, zeroes.flags = x >> 13 & 1;
        return request(WRITE_ZEROES, 0, (u64)&zeroes, sizeof zeroes);
    }
    u64 *word = data;
    for (u32 sector = first; sector < first + count; sector++)
        for (u64 i = 0; i < SECTOR / 8; i++)
            *word++ = ((u64)sector << 40) + (n << 6) + i;
    return request(WRITE, first, (u64)data, count * SECTOR);
}

static void sequence(void)
{
    u64 n = 0;
    for (int i = 0; i < 16; i++) {
        u8 digit = get();
        n = n << 4 | (digit <= '9' ? digit - '0' : digit - 'a' + 10);
    }
    for (;; n++) {
        int is_flushed;
        u8 result = step(n, &is_flushed);
        if (!result && is_flushed && !(result = flush()))
            put('F'), print_hex(n, 16), put('\n');
        if (result) {
            print("failed "), print_hex(n, 16), put('\n');
            return;
        }
    }
}

static void in_turns(void)
{
    u64 n = 0;
    u8 result = 0;
    while (!result && !(inb(COM1 + 5) & 1)) {
        data[0] = ++n;
        disk = disks, result = request(WRITE, 0, (u64)data, SECTOR);
        disk = disks + 1, result |= request(WRITE, 0, (u64)data, SECTOR);
    }
    print_hex(result, 2), put(' '), print_hex(n, 16), put('\n');
}

static u64 clock(void)
{
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static void timed(void)
{
    u64 n = 0, longest = 0, begin = clock();
    u8 result = 0;
    while (!result && !(inb(COM1 + 5) & 1)) {
        u64 before = clock();
        result = request(WRITE, mix(++n) % 20480 * 8, (u64)data, 8 * SECTOR);
        u64 took = clock() - before;
        if (took > longest)
            longest = took;
    }
    print_hex(result, 2), put(' '), print_hex(n, 16), put(' '), print_hex(longest, 16), put(' ');
    print_hex(clock() - begin, 16), put('\n');
}

static void say(u8 result) { print_hex(result, 2), put('\n'); }

void main(void)
{
    print("ready\n");
    for (;;) {
        switch (get()) {
        case 'd':
            disk = disks + ((get() - '0') & 3);
            print(start(get() - 'A') ? "00\n" : "no disk\n");
            break;
        case 'u': disk = disks + ((get() - '0') & 3); break;
        case 'w': {
            u64 sector = (get() - 'a') * 8;
            u8 byte = get();
            for (int i = 0; i < 4096; i++)
                ((u8 *)data)[i] = byte;
            say(request(WRITE, sector, (u64)data, 4096));
            break;
        }
        case 'r': {
            u8 result = request(READ, (get() - 'a') * 8, (u64)data, 4096);
            u8 byte = *(u8 *)data;
            for (int i = 0; i < 4096; i++)
                if (((u8 *)data)[i] != byte)
                    byte = '?';
            print_hex(result, 2), put(' '), put(byte ? byte : '-'), put('\n');
            break;
        }
        case 'f': say(flush()); break;
        case 'z': print("00 "), print_hex(read32(disk->device + 4), 8), print_hex(read32(disk->device), 8), put('\n'); break;
        case 'n': sequence(); break;
        case 's': in_turns(); break;
        case 't': timed(); break;
        case 'p': power_off();
        case 'R': reset();
        }
    }
}
