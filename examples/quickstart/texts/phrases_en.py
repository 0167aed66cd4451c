"""What happens in the English corpus, by domain. The notation of the slots is explained in grammar_en.py.

Sections of a domain: ``do`` verb phrases, ``fact`` plain statements in the past, ``scene`` scene sentences, ``say`` things
people say, ``where`` where it happens, ``title`` headings.
"""

KITCHEN = """
[do]
bake: {a dish +} for {the human pl}
chop: {num produce} into <slices|cubes|thin strips|small pieces>
stir: {the supply} into {a dish_ware}
cook: {a dish} with {0 produce pl} and {0 produce pl}
season: {the dish} with <pepper|thyme|a little nutmeg|fresh dill|bay leaves>
taste: {the dish +} with a wooden spoon
put: {a dish_ware} on the stove
peel: {num produce}
weigh out: {#100-900} grams of {0 supply}
wash up: {the dish_ware pl}
lay: the table for {num 3-24} guests
look for: {the supply} in <the pantry|every cupboard|the wrong drawer>
fill: {the vessel} with {0 produce pl +}
fetch: {a vessel} of {0 produce pl -} from the cellar
light: <the stove|the lamp over the table|a candle>
copy: the recipe for {the dish} into {a paper}
serve: {the human} {a dish +}
beat: {num 2-9} eggs with {0 supply}
whisk: {0 supply} and {0 supply} together
burn: {the dish} for the second time that week
[fact]
{the dish -} was {adj dish}
{the supply} was nearly used up
the {0 produce pl -} were not ripe yet
{the dish_ware} stood on the wrong shelf
{num produce} lay in {a vessel}
the dough refused to rise
the fire burned too low
[scene]
The whole kitchen smelled of <cinnamon and sugar|fresh bread|fried onions|apple sauce|gingerbread>.
{a dish} was bubbling on the stove beside {a dish_ware +}.
{num dish_ware} and {a thing +} hung from the wall.
The dough was resting under {a thing} and slowly growing.
Through the kitchen window one could see {a building +} and {a plant +}.
{num produce +} lay on the table next to {a dish_ware}.
The board was still <damp|full of crumbs|white with flour>, and {a machine} hummed in the corner.
Steam had covered the window, and somebody had drawn {a wild} on the glass.
[say]
Where have you put {the supply}?
You cannot make {a dish} without {0 produce pl}.
Without {0 supply}, {the dish} will come to nothing.
You had better take {the dish_ware +}, or it will boil over.
My grandmother always added another spoonful of {0 supply}.
Do try {the dish}, but be careful, it is still hot!
There is enough for {num 3-20} people if nobody asks for more.
Who left {the dish_ware} in {the room}?
[where]
in the kitchen
at the stove
in the bakehouse
behind the counter
[title]
{a dish} for many guests
How to make {a dish}
A recipe from {place}
"""

WORKSHOP = """
[do]
repair: {a furniture} with {a tool +}
sand: the edges of {the furniture} smooth
sharpen: {the tool}
saw: {num 2-12} planks for {a furniture +}
glue: the broken leg of {the furniture}
polish: {the furniture} with a soft cloth
sew: {a clothing +} for {the human}
mend: {a clothing}
search: {a vessel} for {the tool}
lend: {the human} {a tool}
hang: {the tool} on its hook
tidy up: the workbench
measure: the length of {the furniture} twice
build: {a furniture +} out of <oak|pine|old planks|beech>
forge: {num 4-30} <nails|hooks|hinges> for {a vessel}
paint: {a vessel} with <flowers|little birds|blue stars|bright stripes>
wrap up: {the thing} in <paper|a soft cloth|straw>
drill: {num 2-12} holes into {a furniture}
borrow: {a tool +} from {the human}
[fact]
{the tool -} was {adj tool}
the wood was still too damp
one leg of {the furniture} was clearly shorter than the others
{the tool} had vanished without a trace
the glue had not dried overnight
{the clothing} was wearing thin at both elbows
[scene]
<Shavings|Scraps of cloth|Crooked nails> covered the floor, and {a tool +} hung on the wall.
The place smelled of <wood and glue|leather|oil|fresh paint>.
{a tool} leaned beside the door, and {a furniture +} stood in front of it.
<A stripe of sunlight|The grey light of the afternoon> fell through the dusty window onto {a furniture}.
<Screws|Buttons|Nails|Odds and ends> from many years had gathered in {a vessel +}.
The neighbour's dog slept under {the furniture} and dreamed.
Somebody had carved {a wild} into the side of {the furniture}.
[say]
With {a tool}, it goes twice as fast.
My grandfather built {this furniture}.
Who has taken {my tool}?
Measure twice, and you will only have to cut once.
{the furniture} will be ready by <Friday|Monday|the end of the week>, I promise.
I need {num 2-6} yards of cloth for {a clothing}.
Mind {the tool}, it is sharper than it looks!
[where]
in the workshop
at the workbench
in the shed
beside the anvil
[title]
{a furniture} made of old planks
How to repair {a furniture}
In the workshop
"""

MACHINES = """
[do]
take apart: {a machine +} on the floor
oil: the {0 part pl} of {the machine}
replace: {the part +} with {a part +}
check: {the machine} for faults
turn: {the part} slowly
fit: {a part} into {the machine}
start: {the machine} for the first time in {num 2-30} years
switch off: {the machine}
draw: a plan of {the machine}
explain: {the machine} to {the human}
clean: {the part pl} with {a thing}
examine: {the machine} with {a tool}
pull out: {the part} carefully
loosen: {num part} with {a tool}
order: {num part +} from {place}
connect: {the machine} to {a machine}
write down: the number of {the part} in {a paper}
listen to: the ticking of {the machine}
[fact]
{the machine} no longer made a sound
{a part} was missing from the gearbox
{the part -} was {adj part}
{the machine} lost {num 2-15} minutes every hour
the pressure in the boiler was slowly rising
{the machine -} was far too {adj machine}
[scene]
{the machine +} <rattled|hummed|clattered|squeaked> so loudly that one could hardly hear a word.
{0 part pl} and {0 tool pl} lay everywhere.
The measurements were written on {a paper}: {#12-90} inches long and {#3-11} inches wide.
A thin thread of smoke rose from {the machine}.
{a vessel} full of <oil|screws|rags> stood beside {the machine}.
{a part +} gleamed on the back of {the machine}.
Nobody knew what {the part +} on top of {the machine} was for.
[say]
{a part} is loose, you can hear it.
{the machine} is running again, is that not wonderful?
Nobody builds {a machine} like this any more.
Do not touch {the part} until everything has stopped!
The noise does not come from {the machine} but from {the part}.
In {#1871-1939}, {a machine} cost {#20-95} pounds.
Have you tried {a part +}?
[where]
in the engine room
in the hall
beside the boiler
at the lathe
[title]
The story of {a machine +}
How to look after {a machine}
{a machine} from {place}
"""

SEA = """
[do]
mend: {the gear +} with {a tool}
steer: {the boat} past <the rocks|the sandbank|the pier>
load: {the boat} with {num vessel}
throw: {the gear} overboard
catch: {num 3-60} <herring|mackerel|crabs|cod>
row: {a boat} <to the island|into the bay|to the far shore>
paint: {the boat} <blue|white|green>
watch: {a boat} through the telescope
roll up: {the gear} with great care
rescue: {the human} from {a boat}
tie: {the boat} to {the gear}
dry: {the gear pl} in the sun
write: the course into {the paper}
wait for: the tide
wave to: {the boat} from the pier
sell: {the human} {num 2-9} boxes of fish
listen to: <the foghorn|the gulls|the bell of the buoy|the wind in the masts>
haul in: {the gear} with {num 2-6} sailors
[fact]
{the boat -} was {adj boat}
the sea grew calmer in the evening
{the gear} had torn during the night
the wind was turning to the north-west
{the boat} was {num 2-9} days overdue
the water reached the edge of the quay
[scene]
<The waves|Grey waves|High waves> beat against {the boat +}, and the gulls screamed.
{a boat +} appeared on the horizon.
The lighthouse of {place} threw its beam across the water every {num 5-20} seconds.
{num gear +} were drying on the pier.
It smelled of <seaweed and salt|tar|fish and diesel>, and the wind blew from the <east|north|west>.
At low tide, {the boat} lay crooked in the mud.
Somebody on {a boat +} was playing {the instrument}.
[say]
No boat puts to sea in a wind like this.
{the gear} will last one more trip, no longer.
Can you see {the boat} out there?
We left at {#4-7} in the morning and came home in the dark.
A good sailor checks {the gear} every evening.
Another {num 2-12} miles, and we shall be home.
Keep {the gear} dry, whatever happens!
[where]
in the harbour
on the pier
on board
down on the beach
[title]
A day at sea
{a boat} in the fog
The harbour of {place}
"""

SCHOOL = """
[do]
read: {the paper +} to the last page
write: {a paper +} to {the human}
explain: the exercise to {the human} with {a schooling}
work out: {num 3-20} sums on the blackboard
leave: {the schooling} at home
lend: {the human} {the schooling}
draw: {a wild} in {the paper}
learn: {a paper} by heart
count: {the schooling pl} in the cupboard
correct: the mistakes in {the paper}
look for: {place} on the map
arrange: {the paper pl} in alphabetical order
translate: {a paper +} into <French|German|Latin|Italian>
answer: {num 2-12} questions about {0 wild pl -}
hand in: {the paper} on time
make: {a thing +} out of paper
spell: the word for {a wild}
borrow: {a paper +} from the library
[fact]
{the schooling} had disappeared during the break
the exercise was much harder than the one before
{the paper} had exactly {#12-480} pages
half of the class had a cold
{the paper -} was {adj paper}
lessons had been cancelled because of {the weather}
[scene]
{a schooling +} lay on the teacher's desk next to {a paper}.
The chalk squeaked, and somebody in the back row giggled.
A map of {place} and its surroundings hung on the wall.
<Snow was falling|A fine rain was falling|Yellow leaves were falling> outside the windows.
{#200-900} books stood on the shelves, most of them <old|thick|in Latin|still unread>.
The bell rang, but nobody jumped up.
On the windowsill, {a plant} was growing out of {a vessel}.
[say]
What is {num 11-19} times {num 3-9}?
Anyone who borrows {a paper} must sign here.
Have you seen {the schooling}?
I do not understand {the paper}, can you help me?
Tomorrow we shall write about {a wild}.
{this paper} says something quite different.
How do you spell the name of {the human}?
[where]
in the classroom
in the library
in the playground
in the front row
[title]
An essay about {a wild}
The last day of term
{a paper +} in the library
"""

GARDEN = """
[do]
plant: {num plant} beside {the building}
water: {the plant pl} with {a vessel}
prune: {the plant +} with {a tool}
dig: a hole for {a plant} with {a tool}
pick: {num 2-25} pounds of {0 produce pl}
pull up: the weeds between {the plant pl}
sow: the seeds of {num plant} in little pots
rake up: the leaves under {the plant}
feed: the birds with <seeds|bits of apple|nuts>
carry: {a vessel} of {0 produce pl} to the gate
gather: a bunch of flowers for {the human}
tie: {the plant} to a stick
chase: {a wild} out of the flower bed
swap: {num produce} for {a plant}
build: a nest for {a wild}
watch: {a wild +} under {the plant}
mow: the lawn around {the plant}
[fact]
{the plant -} was especially {adj plant} that year
the soil was as hard as stone
{a wild} lived under {the plant}
the {0 produce pl} were full of worms
the rain came at last
{the plant} flowered for the first time
[scene]
Bees hummed between {the plant pl}.
A butterfly settled on {a plant +}.
{a tool +} leaned against the fence, and {a plant} grew beside it.
The earth was <damp|warm|heavy|loose> and smelled of <rain|moss|summer>.
{a wild +} rustled under {the plant}.
The first {0 produce pl -} shone in the flower bed.
A path of white stones led from {the plant} to {the building}.
[say]
{a plant} needs plenty of <water|sun|room> and even more patience.
{month} is too early for {0 plant pl}.
Who has cut down {my plant}?
When {the weather} comes, {the plant pl} must go indoors.
We have never had so many {0 produce pl}.
Leave {the wild} alone, it does no harm.
Could you water {the plant} while I am away?
[where]
in the garden
behind the greenhouse
between the flower beds
under the old lime tree
[title]
My garden in {month}
How to plant {a plant}
{a wild} among the flowers
"""

WOODS = """
[do]
follow: the tracks of {a wild}
gather: <mushrooms|berries|fir cones|dry wood> in {a vessel}
discover: {a wild +} behind {a plant}
climb: <the nearest hill|the old tower|the highest rock>
walk: {num 4-30} miles to {place}
clamber: over a fallen trunk
photograph: {a wild +}
rest: for a while in the shade of {a plant +}
lose: {a clothing} in the bushes
cross: {the water +} on a log
put up: the tent beside {a water}
hear: {a wild} in the distance
eat: a piece of bread and cheese on {a height +}
fill: {the vessel} with spring water
mark: {the plant pl} with white paint
count: the rings of a fallen <oak|birch|fir|beech|pine>
turn back: just below the summit
[fact]
the path ended suddenly behind {the height}
{a wild} was calling quite close by
the fog was growing thicker and thicker
the hut was still {num 3-9} miles away
{the height -} was {adj height}
snow still lay under the trees
[scene]
It was <dim|cool|so quiet that one could hear the beetles> between the trunks.
{a wild +} ran across the path and vanished into the ferns.
From {the height}, one could look far across {the land +}.
<The snow crunched|Twigs snapped|The leaves rustled> under their shoes.
A signpost pointed to {place}: another {#2-9} hours.
A woodpecker was tapping on <an old oak|a hollow birch|a dead pine|a tall beech> near {the height}.
Something had dug a hole beside {the plant}, perhaps {a wild}.
[say]
There is {a wild} over there, do not move!
If we follow {the water}, we shall come to {place}.
{num 20-90} years ago, {a building} stood here.
Take {a clothing} with you, it is cold up there.
Those tracks belong to {a wild}.
One more hour, and then we shall have a rest.
Did you bring {the thing}?
[where]
in the woods
on the summit
at the edge of the clearing
up on the ridge
[title]
A walk to {place}
The tracks of {a wild}
A night in the woods
"""

FARM = """
[do]
feed: {the beast pl} with hay and oats
milk: {num 4-30} cows before sunrise
drive: {the beast pl} to the pasture
search: {the building} for {the beast +}
catch: {a beast +} behind {the building}
shear: {num 3-40} sheep in a single day
brush: {the beast}
repair: {the vehicle +} with {a tool}
collect: {num 5-50} eggs in {a vessel}
sell: {a beast +} to {a human}
stroke: {the beast +}
load: {num vessel} onto {the vehicle}
grind: {num 2-9} sacks of corn
name: {the beast} after {his kin}
clean out: the stable
carry: {a beast} into the house
harness: {the beast} to {a vehicle}
lead: {the beast +} through {the land}
[fact]
{the beast -} was {adj beast}
{the beast} had eaten nothing since the morning
the fence was broken in {num 2-6} places
{a wild} was creeping around the stable at night
the hay was still wet
{the beast} answered to no name at all
[scene]
{a beast +} stood in the middle of the yard and would not move.
One could hear {the beast pl} in the stable.
{a wild} sat on the roof of {the building}.
The sun rose, and the cockerel crowed for the {ordinal} time.
{a beast +} was sleeping in the straw beside {the vehicle}.
It was harvest time, and everybody lent a hand, even {the human}.
A cloud of dust followed {the vehicle} up the lane.
[say]
{the beast} has eaten {a clothing} again.
A good animal is worth more than {a vehicle}.
Shut the gate, or {the beast pl} will run away!
{a beast} was born last night.
How much is {a beast} in {place} these days?
There is no need to be afraid of {a beast +}.
It took {num 2-9} men to move {the vehicle}.
[where]
in the yard
in the stable
on the pasture
behind the barn
[title]
{a beast} called {name}
A morning on the farm
Market day in {place}
"""

TOWN = """
[do]
bring: {the human} {a paper}
buy: {a thing +} at the market
greet: {the human +}
sell: {num thing} for {#2-40} pounds
organise: {a event +} in front of {the building}
decorate: {the building} with {0 plant pl}
visit: {the human} in {the building +}
find: {a thing +} in front of {the building}
hand out: {0 paper pl} to every household
open: {a building +} in {place}
carry: {a vessel} across the square
discuss: {the event} with {the human}
swap: {a thing} for {a thing +}
ask: {the human} the way to {the building}
ring: the bells at {num 2-12} o'clock
sign: {a paper} at the town hall
collect: money for {a building +}
[fact]
{the building} had stood empty for {num 2-30} years
{the event} was planned for {month}
{the human} loved to talk
the town hall clock had stopped at {num 2-12} once more
{the building -} was {adj building}
{the thing} belonged to nobody
[scene]
{num human} and {a beast} were waiting outside {the building}.
{0 produce pl}, {0 thing pl} and even {a beast} were sold on the square.
The bell struck {num 2-12}, and {a human +} closed the shutters.
A line of washing hung between {the building} and {the building}.
{#120-980} people live in {place}, and nearly as many {0 beast pl -}.
{a human +} was sweeping the steps of {the building}.
Two old men sat outside {the building} and argued about {the event}.
[say]
Have you heard about {the event}?
On Saturday, {the building} does not open until {num 9-11} o'clock.
{the building} used to be a school.
I will not pay more than {num 3-40} pounds for {a thing}.
Please give my regards to {the human}!
They tell a different story in {place}.
Is it true that {the building} has been sold?
[where]
in the market square
outside the town hall
in the shop
on the corner
[title]
News from {place}
{a event +} in {place}
{a building} with a history
"""

TRAVEL = """
[do]
pack: {a clothing}, {a thing} and {a paper} into {the vessel}
miss: {the vehicle} to {place}
climb into: {the vehicle +}
buy: a ticket to {place}
visit: {a building +} in {place}
photograph: {a building +} from every side
write: {num paper} to {the human pl}
spend: the night in {a building +}
lose: {a thing} in {the vehicle}
ask: {the human} about {a building}
hire: {a vehicle} for {num 2-9} days
carry: {the vessel +} up the stairs
wait for: {the vehicle} for {num 2-9} hours
share: a compartment with {a human +}
learn: {num 5-50} words of the foreign language
cross: {the water} by night
set off: before sunrise
[fact]
{the vehicle} was {num 10-50} minutes late
{the vehicle -} was {adj vehicle}
the border was closed overnight
the luggage had stayed behind in {place}
{the building} was only open in the morning
the journey took longer than planned
[scene]
{the vehicle} stopped in the middle of nowhere, and everybody looked out of the window.
Beyond {place}, the country grew <flatter|wilder|greener>, and {a water +} came into view.
{num human} and {a vessel +} stood on the platform.
The journey from {place} to {place} took {num 2-15} hours.
{a human +} with {a vessel} and {a thing} sat by the window.
In the evening, the lights of {place} were reflected in {the water}.
A sign said that it was {num 20-90} miles to {place}.
[say]
Is there a seat left on {this vehicle}?
Nothing goes to {place} today.
Whose is {this vessel +}?
It is {num 20-90} miles from {place} to {place}.
Do not forget {the clothing}, it snows in the mountains.
The best view is from {the building}.
How long does {the vehicle} stop here?
[where]
on the train
on the platform
on the way
at the ticket office
[title]
From {place} to {place}
A journey with {a vessel +}
Three days in {place}
"""

MUSIC = """
[do]
practise: {a piece +} on {the instrument}
play: {a piece} to {the human}
tune: {the instrument +}
sing: {a piece +} with {the human pl}
compose: {a piece} for {a instrument} and {a instrument}
hear: {a piece} from {the building}
repair: {a instrument +}
lend: {the human} {the instrument}
buy: {a instrument +} at an auction
rehearse: {the piece} for the {ordinal} time
repeat: the beginning of {the piece}
accompany: the choir on {a instrument}
dance: through {the room} to {a piece +}
conduct: {num 8-40} musicians
write down: the notes of {the piece}
teach: {num 2-12} children to play {the instrument}
hum: {a piece +} on the way home
[fact]
{the instrument -} was {adj instrument}
one of the strings had snapped
{the piece -} sounded {adj piece}
the concert was sold out
the choir sang half a tone too low
{the instrument} had been in the family for {num 10-90} years
[scene]
{a piece +} came from the open window.
{a instrument} stood in the corner, and {a instrument +} leaned beside it.
The hall was full except for {num 2-9} seats.
The music lay <on the floor|on the piano|in {a vessel}>, and nobody could find page {num 2-40}.
For a long time after the last note, nobody moved.
{a human +} was quietly humming {the piece}.
The applause went on for {num 2-12} minutes.
[say]
{the piece} must begin more softly.
Everything sounds sad on {a instrument}.
Who is playing {the instrument} today?
Once more from the beginning, and together, please!
{my kin} taught me this song.
{a instrument} is not for the impatient.
Count to {num 3-9} before you come in.
[where]
in the concert hall
in the rehearsal room
on the stage
at the music school
[title]
{a instrument} in the attic
The concert in {place}
{a piece +} for {name}
"""

HOUSE = """
[do]
paint: {the room} <light blue|yellow|white|green>
push: {the furniture +} into {the room}
clean: the windows of {the room}
repair: the roof of {the building}
find: {a thing +} behind {the furniture}
tidy up: {the room +}
lay: new floorboards in {the room}
mend: {the furniture} with {a tool}
hang: {a thing +} above {the furniture}
heat: {the room} with wood
look for: {the thing} in {the room}
open: {a vessel +} from {the room}
seal: the cracks in {the room}
sell: {the furniture +} to {a human}
build: a wall between {the room} and {the room}
carry: {num vessel} into {the room}
hang: wallpaper with <stripes|flowers|little ships>
[fact]
{the room -} was {adj room}
the roof leaked in {num 2-5} places
{the furniture} did not fit through the door
the key did not fit the lock
the heating had been off for {num 2-6} days
{the thing} lay under {the furniture}
[scene]
{a furniture +}, {a furniture} and {num vessel} stood in {the room}.
The stairs creaked at every step.
Rain came through the roof, and {num vessel} stood on the floor.
The wallpaper in {the room} was <green|faded|torn at one corner>.
A <faint|strange|dull> noise came from {the room}.
The dust of {num 3-40} years lay on {the furniture}.
A pale square on the wall of {the room} showed where {a thing} had been.
[say]
{the furniture} goes into {the room}, not here.
How long do you wish to stay in {this room}?
I will not sell {this furniture} under any circumstances.
There was {a vessel +} under the floorboards.
The rent is {#180-690} pounds a month.
There has been a draught in {the room} since the autumn.
Have you found {the thing} yet?
[where]
on the stairs
in the attic
in the cellar
on the roof
[title]
{a room} under the roof
How to paint {a room}
A house in {place}
"""

DOMAINS = {
    "kitchen": KITCHEN, "workshop": WORKSHOP, "machines": MACHINES, "sea": SEA, "school": SCHOOL, "garden": GARDEN,
    "woods": WOODS, "farm": FARM, "town": TOWN, "travel": TRAVEL, "music": MUSIC, "house": HOUSE,
}  # fmt: skip
