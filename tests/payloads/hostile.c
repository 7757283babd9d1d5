/* Writes nonsense to everything a guest can reach, as fast as it can: ports, configuration space, every
 * register of every device, rings full of rubbish. What it does follows from the seed, which it is asked for
 * on the console, with the number of rounds: two bytes each. */
#include "payload.h"

static u8 memory[64 << 10] __attribute__((aligned(4096)));
static u64 state;

static u32 random(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state >> 16;
}

/* A number as an attacker would choose it. */
static u32 evil(void)
{
    static const u32 favourites[] = { 0, 1, 2, 3, 7, 8, 255, 256, 257, 0x7fff, 0x8000, 0xffff, 0x10000,
                                      0x7fffffff, 0x80000000, 0xffffffff };
    switch (random() % 4) {
    case 0: return random();
    case 1: return (u64)memory + random() % sizeof memory;
    default: return favourites[random() % 16];
    }
}

static void write_any(u64 at)
{
    switch (random() % 3) {
    case 0: write8(at, evil()); break;
    case 1: write16(at, evil()); break;
    default: write32(at, evil());
    }
    if (random() % 4 == 0)
        read32(at);
}

static void scramble(u64 from, int size)
{
    for (int i = 0; i < 24; i++)
        write_any(from + random() % size);
}

/* A device that works, but whose rings are rubbish. */
static void ring_rubbish(int slot)
{
    u64 common = structure(slot, 1), notify = structure(slot, 2), queue = (u64)memory;
    if (!common || !notify || !start_device(common, queue))
        return;
    for (int i = 0; i < 8; i++)
        descriptor(queue, i, random() % 2 ? (u64)memory + random() % sizeof memory : evil(), evil(), random() % 8, evil());
    for (int i = 0; i < 8; i++)
        write16(AVAILABLE(queue) + 4 + 2 * i, random() % 2 ? random() % 8 : evil());
    write16(AVAILABLE(queue) + 2, random() % 2 ? random() % 9 : evil());
    write16(notify, 0);
    for (int i = 0; i < 50; i++)
        read8(common + STATUS);
    scramble((u64)memory, 0x1000);
    write16(notify + 4 * (random() % 8), evil());
}

void main(void)
{
    print("seed?\n");
    state = 0x9e3779b97f4a7c15ul ^ get() ^ get() << 8;
    int rounds = get();
    rounds |= get() << 8;
    print("attacking\n");
    for (int round = 0; round < rounds; round++) {
        int slot = random() % 5;
        u64 bar = read32(config(slot, 0x10)) & ~15u;
        switch (random() % 6) {
        case 0: scramble(config(slot, 0), random() % 2 ? 256 : 32768); break;
        case 1: write_any(bar + random() % 0x38); break;
        case 2: if (bar >= 0xc0000000 && bar < 0xe0000000) scramble(bar + 0x1000 * (random() % 8), 0x1000); break;
        case 3: write_any(0xc0000000 + random() % 0x20000000); break;
        case 4: {
            /* Not the ports that end the machine. */
            u16 port = random();
            if (port < 0x600 || port > 0x602)
                if (port != 0x64)
                    inb(port), outb(port == COM1 ? COM1 + 7 : port, evil());
            break;
        }
        default: write32(config(slot, 4), 6), ring_rubbish(slot);
        }
    }
    outb(COM1 + 4, 0); /* no loopback, or nobody hears us */
    outb(COM1 + 3, 3);
    print("survived\n");
    power_off();
}
