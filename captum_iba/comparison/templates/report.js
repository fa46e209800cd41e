"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

{% include "values.js" %}

{% include "photos.js" %}

{% include "texts.js" %}

{% include "curves.js" %}

})();
