/* Says that it is ready, and sleeps for ever: a guest that costs nothing. */
#include "payload.h"

void main(void)
{
    print("ready\n");
    for (;;)
        asm volatile("hlt");
}
